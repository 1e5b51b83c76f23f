"""tools/benchmark.py on small real configs."""
import csv
import json

import pytest
import torch
from tiny_runs import DETECTOR, ROOT, SEGMENTER, run_tool

STATIC = 'configs/shapes/faster-rcnn_r18_fpn_shapes.py'
QUICK = ['--repeats', '2', '--warmup', '0', '--device', 'cpu']


def measure(tmp_path, *argv):
    assert run_tool('benchmark.py', [*argv, *QUICK, '--out-dir', str(tmp_path)]) == 0
    return json.loads((tmp_path / 'benchmark.json').read_text())


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / 'broken.py'
    path.write_text(f"_base_ = '{ROOT / STATIC}'\nmodel = dict(backbone=dict(type='NoSuchNet'))\n")
    return path


def test_backbones(tmp_path, broken, capsys):
    result = measure(tmp_path, f'static={ROOT / STATIC}', f'kdna={ROOT / DETECTOR}', f'{broken}', '--scope', 'backbone',
                     '--batch', '1', '3', '--size', '64', '96')
    rows = {(row['name'], row['batch']): row for row in result['rows']}
    assert list(rows) == [(name, batch) for batch in (1, 3) for name in ('static', 'kdna', 'broken')]
    kdna = rows['kdna', 3]
    assert (kdna['height'], kdna['width'], kdna['device'], kdna['precision']) == (64, 96, 'cpu', 'fp32')
    assert kdna['unique_params_m'] == 8.727798 and kdna['deployed_params_m'] == 17.5728
    assert rows['static', 3]['unique_params_m'] == 11.176512
    assert kdna['latency_ratio'] == kdna['latency_ms'] / rows['static', 3]['latency_ms']
    assert kdna['throughput_img_s'] == pytest.approx(3e3 / kdna['latency_ms'])
    assert rows['broken', 1]['latency_ms'] is None and 'NoSuchNet' in rows['broken', 1]['error']
    assert result['environment']['torch'] == torch.__version__ and result['settings']['scope'] == 'backbone'
    check_files(tmp_path, result['rows'])
    printed = capsys.readouterr().out
    assert 'KeyError' in printed and '17.573' in printed and f'torch {torch.__version__}' in printed


def check_files(folder, rows):
    lines = list(csv.DictReader((folder / 'benchmark.csv').open()))
    assert [line['name'] for line in lines] == [row['name'] for row in rows]
    assert float(lines[1]['latency_ms']) == rows[1]['latency_ms'] and lines[1]['torch'] == torch.__version__
    text = (folder / 'benchmark.md').read_text()
    assert '| kdna | 3 | 64 | 96 |' in text and '- broken (batch 1, 64x96): KeyError' in text


def test_whole_models_and_training_steps(tmp_path):
    result = measure(tmp_path, str(ROOT / DETECTOR), str(ROOT / SEGMENTER), '--batch', '2', '--size', '64x64',
                     '--train-step')
    for row in result['rows']:
        assert row['error'] is None and row['train_error'] is None
        assert min(row['latency_ms'], row['train_step_ms'], row['gmacs']) > 0
        assert row['train_peak_memory_mb'] > row['peak_memory_mb'] > 4 * row['unique_params_m']
    assert result['rows'][0]['latency_ratio'] == 1


def test_size_comes_from_the_config(tmp_path):
    row, = measure(tmp_path, str(ROOT / SEGMENTER), '--batch', '1')['rows']
    assert (row['height'], row['width']) == (160, 160)


@pytest.mark.parametrize('argv, message', [
    ([str(ROOT / STATIC), str(ROOT / STATIC)], 'write NAME=CONFIG'),
    ([str(ROOT / STATIC), '--size', '1', '2', '3'], '--size: plain sizes pair up'),
    ([str(ROOT / 'configs/shapes/nothing.py')], 'does not exist'),
])
def test_mistakes(argv, message, tmp_path, capsys):
    assert run_tool('benchmark.py', [*argv, *QUICK, '--out-dir', str(tmp_path)]) == 2
    assert message in capsys.readouterr().err

"""tools/formats.py on a segmenter of two stages that looks trained: every kind of row, reuse, and rows that fail."""

import json

import pytest
import torch
from helpers import randomise
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from tiny_runs import ROOT, SEGMENTER, run_tool

from mmkerneldna.runs.format_table import complete_rows

CONFIG = f"""
_base_ = {str(ROOT / SEGMENTER)!r}
model = dict(
    backbone=dict(base_channels=16, num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1),
                  sharing={{'layer2.0.conv2': 'layer2.1.conv2'}}),
    decode_head=dict(
        _delete_=True, type='FCNHead', in_channels=32, in_index=1, channels=16, num_convs=1, num_classes=7,
        norm_cfg=dict(type='BN')),
    auxiliary_head=None)
"""


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A config and a checkpoint."""
    folder = tmp_path_factory.mktemp('formats')
    (folder / 'small.py').write_text(CONFIG)
    init_default_scope('mmseg')
    torch.manual_seed(0)
    net = randomise(MODELS.build(Config.fromfile(folder / 'small.py').model))
    torch.save(dict(state_dict=net.state_dict(), meta=dict(epoch=1)), folder / 'epoch_1.pth')
    return folder


def run(folder, shapes, out, *flags):
    argv = [str(folder / 'small.py'), str(folder / 'epoch_1.pth'), '--out-dir', str(out), '--warmup', '0', '--repeats', '1']
    return run_tool('formats.py', [*argv, *flags, '--cfg-options', f'data_root={shapes}'])


def rows_of(out):
    return {row['format']: row for row in json.loads((out / 'formats.json').read_text())['rows']}


def test_scores_sizes_and_times(trained, shapes, tmp_path, capsys, monkeypatch):
    formats = ['--formats', 'torch', 'onnx', 'onnx-fp16', 'onnx-int8', 'openvino-bf16', 'openvino-fp16']
    monkeypatch.setattr('mmkerneldna.deploy.half.capabilities', lambda openvino: ['FP32', 'INT8'])
    assert run(trained, shapes, tmp_path, *formats, '--calib', '10', '--batch', '1', '2') == 0
    rows = rows_of(tmp_path)
    assert list(rows) == formats[1:]
    for key in ('onnx', 'onnx-fp16', 'openvino-fp16'):
        assert rows[key]['miou'] == pytest.approx(rows['torch']['miou'], abs=0.5)
        assert rows[key]['score_change'] == pytest.approx(rows[key]['miou'] - rows['torch']['miou'])
    for row in (row for key, row in rows.items() if key != 'openvino-bf16'):
        assert min(row['b1_ms'], row['b2_ms'], row['file_mb'], row['miou']) > 0 and row['note'] is None
        assert row['b2_ratio'] == row['b2_ms'] / rows['torch']['b2_ms']
    assert rows['onnx-fp16']['file_mb'] < 0.6 * rows['onnx']['file_mb']
    assert rows['onnx-int8']['file_mb'] < rows['onnx']['file_mb'] and (tmp_path / 'onnx-int8.onnx').is_file()
    failed = rows['openvino-bf16']
    assert 'this CPU computes no bf16 (OpenVINO lists FP32, INT8): take fp16' in failed['note'] and 'b1_ms' not in failed
    printed = capsys.readouterr().out
    page, text = (tmp_path / 'formats.html').read_text(), (tmp_path / 'formats.md').read_text()
    for shown in (printed, page, text):
        assert 'onnxruntime int8' in shown and 'mIoU' in shown
    assert f'| {rows["onnx"]["miou"]:.2f} |' in text

    # files and scores stay, only the timing is new
    before = (tmp_path / 'onnx.onnx').stat().st_mtime_ns
    again = ['--formats', 'torch', 'onnx', '--reuse', '--no-score', '--batch', '1']
    assert run(trained, shapes, tmp_path, *again) == 0
    kept = rows_of(tmp_path)
    assert (tmp_path / 'onnx.onnx').stat().st_mtime_ns == before
    assert kept['onnx']['miou'] == rows['onnx']['miou'] and kept['onnx']['score_change'] == rows['onnx']['score_change']
    assert kept['onnx']['b1_ms'] != rows['onnx']['b1_ms']


def test_too_few_calibration_images_fail_in_their_row(trained, shapes, tmp_path):
    assert run(trained, shapes, tmp_path, '--formats', 'onnx', 'onnx-int8', '--calib', '13', '--images', '1', '--batch') == 0
    rows = rows_of(tmp_path)
    assert rows['onnx']['note'] is None and 'b1_ms' not in rows['onnx']
    assert 'the training set of the config has 12 images, too few' in rows['onnx-int8']['note']
    assert not (tmp_path / 'onnx-int8.onnx').exists()


@pytest.mark.parametrize(
    'flags, message',
    [
        (['--calib', '9'], "argument --calib: '9' is not a whole number of at least 10"),
        (['--formats', 'tflite'], "argument --formats: invalid choice: 'tflite'"),
        (['--max-drop', '-1'], "argument --max-drop: '-1' is not a finite number of at least 0"),
    ],
)
def test_mistakes(flags, message, trained, shapes, tmp_path, capsys):
    assert run(trained, shapes, tmp_path, *flags) == 2
    assert message in capsys.readouterr().err


def test_reuse_of_another_checkpoint(trained, shapes, tmp_path, capsys):
    (tmp_path / 'formats.json').write_text(json.dumps(dict(checkpoint='other.pth', rows=[])))
    assert run(trained, shapes, tmp_path, '--formats', 'torch', '--reuse') == 2
    assert 'is of checkpoint other.pth: leave --reuse out' in capsys.readouterr().err


def test_ratios_and_changes():
    rows = [dict(main=40.0, b1_ms=10.0), dict(main=39.5, b1_ms=2.5), dict(note='failed')]
    complete_rows(rows, [1])
    assert [row['b1_ratio'] for row in rows] == [1, 0.25, None]
    assert [row['score_change'] for row in rows] == [None, -0.5, None]


def test_export_in_int8(trained, shapes, tmp_path):
    """With a limit no file can miss, nothing stays float; the report lies beside the file."""
    out = tmp_path / 'int8.onnx'
    argv = [str(trained / 'small.py'), str(trained / 'epoch_1.pth'), '--format', 'onnx', '--end2end', '--int8', '--calib', '10']
    flags = ['--check', '1', '--size', '64', '--max-drop', '100', '--out', str(out), '--cfg-options', f'data_root={shapes}']
    assert run_tool('export.py', [*argv, *flags]) == 0
    facts = json.loads((tmp_path / 'int8.onnx.json').read_text())
    assert facts['meta']['dtype'] == 'int8' and facts['int8']['images'] == 10 and facts['int8']['left_float'] == []
    assert abs(facts['int8']['score'] - facts['int8']['float_score']) < 20 and facts['int8']['layers'] > 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ['int8.onnx', 'int8.onnx.json']


@pytest.mark.parametrize(
    'flags, message',
    [
        (['--format', 'pt2', '--end2end', '--int8'], '--int8 is for --end2end --format onnx or openvino'),
        (['--format', 'onnx', '--int8'], '--int8 is for --end2end --format onnx or openvino'),
        (['--format', 'onnx', '--end2end', '--calib', '20'], '--calib and --max-drop are for --int8'),
        (
            ['--format', 'onnx', '--end2end', '--int8', '--calib', '3'],
            "argument --calib: '3' is not a whole number of at least 10",
        ),
    ],
)
def test_export_flags_of_int8(flags, message, trained, capsys):
    assert run_tool('export.py', [str(trained / 'small.py'), str(trained / 'epoch_1.pth'), *flags]) == 2
    assert message in capsys.readouterr().err

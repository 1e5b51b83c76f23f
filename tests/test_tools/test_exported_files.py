"""Exported files in tools/test.py and tools/benchmark.py, and what they refuse."""

import json
from pathlib import Path

import pytest
from mmengine.config import Config
from tiny_files import ChannelsAsLabels, TinyDetector, TinySegmenter, write_file
from tiny_runs import DETECTOR, ROOT, SEGMENTER, SMALL, run_tool

from mmkerneldna.launch.exported import test_classes as classes_of_test_set

QUICK = ['--repeats', '2', '--warmup', '0', '--device', 'cpu', '--batch', '1', '2', '--size', '16x24']


def classes(config, data):
    cfg = Config.fromfile(ROOT / config)
    cfg.merge_from_dict({'test_dataloader.dataset.data_root': str(data)})
    return list(classes_of_test_set(cfg))


def run_test(config, path, data, work_dir, *flags):
    options = ['--cfg-options', f'data_root={data}', *SMALL[config], 'custom_hooks=[]']
    return run_tool('test.py', [str(ROOT / config), str(path), '--work-dir', str(work_dir), *flags, *options])


def metrics(work_dir):
    (path,) = (path for path in Path(work_dir).glob('*/*.json') if path.stem == path.parent.name)
    return json.loads(path.read_text())


def test_a_segmenter_is_scored_and_timed(shapes, tmp_path):
    path = write_file(tmp_path / 'seg.onnx', ChannelsAsLabels(), classes=classes(SEGMENTER, shapes))
    assert run_test(SEGMENTER, path, shapes, tmp_path / 'run') == 0
    found = metrics(tmp_path / 'run')
    assert 0 < found['aAcc'] < 100 and found['cost/latency_ms'] > 0
    assert found['cost/file_mb'] == path.stat().st_size / 1e6 and 'cost/peak_memory_mb' not in found
    # of the config's own model, which has many times the parameters of the file
    assert found['cost/unique_params_m'] > 0.1 > 10 * found['cost/file_mb'] and found['cost/gmacs'] > 0.001


def test_a_detector_is_scored_and_timed(shapes, tmp_path):
    path = write_file(tmp_path / 'det.xml', TinyDetector(), 'detection', classes=classes(DETECTOR, shapes))
    assert run_test(DETECTOR, path, shapes, tmp_path / 'run') == 0
    found = metrics(tmp_path / 'run')
    assert 0 <= found['coco/bbox_mAP'] < 0.5 and found['cost/latency_ms'] > 0
    # with random weights its second stage would see another number of boxes
    assert found['cost/unique_params_m'] > 0.1 and 'cost/gmacs' not in found


@pytest.mark.parametrize(
    'facts, message',
    [
        (dict(task='detection'), 'is a file for detection (config unknown), the config is for segmentation'),
        (dict(classes=['a', 'b'], config='other'), 'knows 2 classes (a, b), the test set of the config has 7'),
        (dict(task='raw'), 'export the whole model by --end2end'),
        (dict(size=(8, 8)), 'this file takes (N, 3, 8, 8) uint8'),
    ],
)
def test_a_file_of_another_model(facts, message, shapes, tmp_path, capfd):
    facts = dict(dict(task='segmentation', classes=classes(SEGMENTER, shapes)), **facts)
    path = write_file(tmp_path / 'seg.onnx', ChannelsAsLabels(), **facts)
    assert run_test(SEGMENTER, path, shapes, tmp_path / 'run') == 2
    error = capfd.readouterr().err
    assert 'error: ' in error and message in error and 'Traceback' not in error


def test_masks_are_wanted_and_the_file_has_none(shapes, tmp_path, capfd):
    path = write_file(tmp_path / 'det.onnx', TinyDetector(), 'detection', classes=classes(DETECTOR, shapes))
    options = ['--cfg-options', f'data_root={shapes}', "test_evaluator.metric=['bbox','segm']"]
    assert run_tool('test.py', [str(ROOT / DETECTOR), str(path), '--work-dir', str(tmp_path), *options]) == 2
    assert 'is a file for detection (config unknown), the config is for instance' in capfd.readouterr().err


@pytest.mark.parametrize('flag', ['--deploy', '--tta'])
def test_flags_that_change_a_model(flag, shapes, tmp_path, capfd):
    assert run_test(SEGMENTER, tmp_path / 'seg.onnx', shapes, tmp_path, flag) == 2
    assert f'error: {flag} changes a model, and {tmp_path}/seg.onnx is an exported file' in capfd.readouterr().err


def test_no_such_file(shapes, tmp_path, capfd):
    assert run_test(SEGMENTER, tmp_path / 'none.onnx', shapes, tmp_path) == 2
    assert 'none.onnx does not exist' in capfd.readouterr().err


def test_benchmark_beside_a_config(tmp_path, capsys):
    path = write_file(tmp_path / 'seg.xml', TinySegmenter())
    still = write_file(tmp_path / 'still.onnx', TinySegmenter(), size=(8, 8))
    argv = [f'net={ROOT / SEGMENTER}', f'file={path}', str(still), *QUICK, '--out-dir', str(tmp_path / 'out')]
    assert run_tool('benchmark.py', argv) == 0
    rows = {(row['name'], row['batch']): row for row in json.loads((tmp_path / 'out/benchmark.json').read_text())['rows']}
    assert list(rows) == [(name, batch) for batch in (1, 2) for name in ('net', 'file', 'still.onnx')]
    for batch in (1, 2):
        row = rows['file', batch]
        assert row['error'] is None and row['latency_ms'] > 0 and row['peak_memory_mb'] is None and row['gmacs'] is None
        assert row['file_mb'] == sum(p.stat().st_size for p in (path, path.with_suffix('.bin'))) / 1e6
        assert row['latency_ratio'] == row['latency_ms'] / rows['net', batch]['latency_ms']
        assert 'this file takes (N, 3, 8, 8)' in rows['still.onnx', batch]['error']
    assert 'file MB' in (tmp_path / 'out/benchmark.md').read_text() and 'FileError' in capsys.readouterr().out


def test_benchmark_of_a_part(tmp_path, capsys):
    path = write_file(tmp_path / 'seg.onnx', ChannelsAsLabels())
    assert run_tool('benchmark.py', [str(path), *QUICK, '--scope', 'backbone', '--out-dir', str(tmp_path)]) == 2
    assert 'seg.onnx is an exported file, a whole model: use --scope model' in capsys.readouterr().err

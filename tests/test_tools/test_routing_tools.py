"""tools/sweep.py, tools/show_routing.py, benchmark.py --keep and the cost of a test, on small models with gates."""

import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from tiny_runs import ROOT, run_tool
from torch import nn

from mmkerneldna import launch
from mmkerneldna.routing import keep_gates

SKIP = str(ROOT / 'configs/shapes/upernet_skip-r34-w32_shapes.py')
SPARSE = str(ROOT / 'configs/shapes/upernet_sparse-r34-w32_shapes.py')
STATIC = str(ROOT / 'configs/shapes/upernet_r34-w32_shapes.py')
CLASSES = tuple('abcdefg')
SMALLER = ['model.data_preprocessor.size=(64,64)', 'train_dataloader.dataset.pipeline.2.crop_size=(64,64)']


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """Checkpoints with random weights, whose gates tell images and places apart."""
    paths = {}
    for config in (SKIP, SPARSE, STATIC):
        cfg = launch.load_config(config)
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = MODELS.build(cfg.model)
        for gate in keep_gates(model).values():
            nn.init.normal_((gate.fc2 if hasattr(gate, 'fc2') else gate.fc).weight)
        paths[config] = str(tmp_path_factory.mktemp('weights') / 'iter_1.pth')
        meta = dict(dataset_meta=dict(classes=CLASSES, palette=[[30 * i, 60, 90] for i in range(7)]))
        torch.save(dict(state_dict=model.state_dict(), meta=meta), paths[config])
    return paths


def test_sweep(weights, shapes, tmp_path, capsys):
    out = tmp_path / 'out'
    argv = [SKIP, weights[SKIP], '--keep', '1', '.5', '--static', 'r34', STATIC, weights[STATIC], '--out', str(out)]
    argv += ['--calibration', '8', '--images', '2', '--repeats', '1', '--no-deploy', '--device', 'cpu']
    status = run_tool('sweep.py', [*argv, '--cfg-options', f'data_root={shapes}', *SMALLER])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    rows = json.loads((out / 'sweep.json').read_text())['rows']
    assert [row['keep'] for row in rows] == [1, 0.5, None] and rows[2]['name'] == 'r34'
    assert rows[0]['keep_rate'] == 1 > rows[1]['keep_rate'] > 0
    assert rows[0]['gmacs'] == pytest.approx(rows[2]['gmacs'], rel=0.02) and rows[1]['gmacs'] < rows[0]['gmacs']
    assert all(0 <= row['score'] <= 100 and row['latency_mean_ms'] > 0 for row in rows)
    assert {path.name for path in out.iterdir()} >= {'sweep.json', 'sweep.md', 'sweep.png'}
    assert 'keep 0.5' in printed.out


def test_sweep_refuses(weights, shapes, tmp_path, capsys):
    argv = ['--out', str(tmp_path), '--device', 'cpu', '--cfg-options', f'data_root={shapes}']
    assert run_tool('sweep.py', [SKIP, weights[SKIP], '--keep', '1.5', *argv]) == 2
    assert 'keep=1.5 must lie in (0, 1]' in capsys.readouterr().err
    assert run_tool('sweep.py', [STATIC, weights[STATIC], '--keep', '.5', *argv]) == 2
    assert 'has no gates to sweep' in capsys.readouterr().err


@pytest.mark.parametrize('config', [SKIP, SPARSE])
def test_show_routing(config, weights, tmp_path, capsys):
    photos, out, rng = tmp_path / 'photos', tmp_path / 'out', np.random.default_rng(0)
    photos.mkdir()
    for name in 'ab':
        cv2.imwrite(str(photos / f'{name}.png'), rng.integers(0, 255, (96, 128, 3), dtype=np.uint8))
    assert (
        run_tool(
            'show_routing.py', [config, weights[config], str(photos), '--out', str(out), '--keep', '.5', '--device', 'cpu']
        )
        == 0
    )
    images = json.loads((out / 'routing.json').read_text())['images']
    assert [row['image'] for row in images] == ['a', 'b']
    kept = np.mean([list(row['kept'].values()) for row in images])
    assert 0.2 < kept < 0.8
    if config == SKIP:
        assert (out / 'blocks.png').stat().st_size and len(images[0]['kept']) == 12
    else:
        assert cv2.imread(str(out / 'masks/a.png')).shape[1] >= 2 * 128 and set(images[0]['kept']) == {'layer1.1', 'layer2.1'}


def test_benchmark_at_keep_rates(tmp_path, capsys):
    argv = [f'static={STATIC}', f'skip={SKIP}', '--keep', '1', '.5', '--scope', 'backbone', '--size', '64', '--batch', '1']
    argv += ['--repeats', '1', '--warmup', '0', '--device', 'cpu', '--out-dir', str(tmp_path)]
    assert run_tool('benchmark.py', argv) == 0
    rows = json.loads((tmp_path / 'benchmark.json').read_text())['rows']
    assert [row['name'] for row in rows] == ['static', 'skip keep 1', 'skip keep 0.5']
    assert rows[2]['gmacs'] < 0.8 * rows[1]['gmacs'] == pytest.approx(0.8 * rows[0]['gmacs'], rel=1e-3)
    capsys.readouterr()
    assert run_tool('benchmark.py', [STATIC, '--keep', '.5', '--out-dir', str(tmp_path)]) == 2
    assert '--keep is for models with SkipBlocks or SparseBlocks' in capsys.readouterr().err


def test_a_test_reports_cost_over_images(weights, shapes, tmp_path):
    argv = [SPARSE, weights[SPARSE], '--work-dir', str(tmp_path)]
    assert run_tool('test.py', [*argv, '--cfg-options', f'data_root={shapes}']) == 0
    (path,) = tmp_path.rglob('cost.json')
    cost = json.loads(path.read_text())['cost']
    assert cost['cost/images'] == 2 and {'cost/latency_mean_ms', 'cost/keep/layer1_1', 'cost/keep/layer2_1'} <= set(cost)
    assert 0 < cost['cost/keep_rate'] <= 1 and cost['cost/gmacs'] > 0
    assert cost['cost/latency_ms'] <= cost['cost/latency_p90_ms']

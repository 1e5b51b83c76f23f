"""tools/benchmark.py on small real configs."""

import csv
import json

import pytest
import torch
from mmdet.models.backbones import ResNet
from tiny_runs import DETECTOR, ROOT, SEGMENTER, run_tool
from torch import nn

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
    result = measure(
        tmp_path,
        f'static={ROOT / STATIC}',
        f'kdna={ROOT / DETECTOR}',
        f'{broken}',
        '--scope',
        'backbone',
        '--batch',
        '1',
        '3',
        '--size',
        '64x96',
    )
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


@pytest.mark.parametrize('reason', ['threads waited', ''])
def test_disturbed_measurements_are_marked(tmp_path, monkeypatch, capsys, reason):
    monkeypatch.setattr('mmkerneldna.measure.latency.disturbance', lambda samples, device: reason)
    (row,) = measure(tmp_path, str(ROOT / STATIC), '--scope', 'backbone', '--batch', '1', '--size', '64', '--train-step')[
        'rows'
    ]
    assert (row['disturbed'], row['train_disturbed']) == (reason or None, reason or None)
    explained = '* the machine was busy with something else'
    for text in (capsys.readouterr().out, (tmp_path / 'benchmark.md').read_text()):
        assert (explained in text) == (f'{row["latency_ms"]:.2f}*' in text) == bool(reason)


def test_deployed_models(tmp_path):
    """The deployed pair has no child any more; GMACs and unique parameters stay those of the model as it was built."""
    import mmkerneldna.deploy as package

    deployed, real = [], package.deploy
    package.deploy = lambda *args, **options: deployed.append(real(*args, **options)) or deployed[-1]
    try:
        result = measure(
            tmp_path,
            f'static={ROOT / STATIC}',
            f'kdna={ROOT / DETECTOR}',
            '--batch',
            '1',
            '--size',
            '64',
            '--proposals',
            '20',
            '--deploy',
        )
    finally:
        package.deploy = real
    assert [row['error'] for row in result['rows']] == [None, None]
    assert result['rows'][1]['unique_params_m'] < result['rows'][1]['deployed_params_m'] and len(deployed) == 2
    assert [model.deploy_report.convs_baked for model in deployed] == [0, 6]
    assert all(model.deploy_report.norms_folded > 0 for model in deployed)


@pytest.mark.parametrize('shared', [False, True])
def test_parameters_of_the_deployed_copy(tmp_path, shared):
    """A ResNet-18 whose late stages have half of their kernels: with --shared they stay one per parent."""
    config, narrow = tmp_path / 'half.py', dict(depth=18, base_channels=8, stem_channels=8)
    plan = {f'layer{stage}.{child}': f'layer{stage}.1.conv2' for stage in (3, 4) for child in ('0.conv2', '1.conv1')}
    half = dict(type='KernelDNA', module=dict(narrow, type='mmdet.ResNet'), plan=plan, spatial_scale=False)
    config.write_text(f'model = dict(type="mmdet.RetinaNet", backbone={half!r})\n')
    argv = [str(config), '--scope', 'backbone', '--batch', '1', '--size', '32', '--deploy', *['--shared'] * shared]
    (row,) = measure(tmp_path, *argv)['rows']
    convs = sum(m.weight.numel() + m.out_channels for m in ResNet(**narrow).modules() if isinstance(m, nn.Conv2d))
    gates = sum(2 * (2 * c * c // 4 + c // 4 + c) for c in (32, 64))
    # with the norms of a net that is not trained all three of a family are plain, and have nothing to add
    spared = sum(2 * 9 * c * c + 3 * c for c in (32, 64)) if shared else 0
    assert round(row['deployed_params_m'] * 1e6) == convs + gates - spared


def test_whole_models_and_training_steps(tmp_path):
    result = measure(tmp_path, str(ROOT / DETECTOR), str(ROOT / SEGMENTER), '--batch', '2', '--size', '64x64', '--train-step')
    for row in result['rows']:
        assert row['error'] is None and row['train_error'] is None
        assert min(row['latency_ms'], row['train_step_ms'], row['gmacs']) > 0
        assert row['train_peak_memory_mb'] > row['peak_memory_mb'] > 4 * row['unique_params_m']
    assert result['rows'][0]['latency_ratio'] == 1


def test_variants_of_an_upstream_config(tmp_path):
    result = measure(
        tmp_path,
        'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
        '--variant',
        'static',
        'kdna',
        'odconv4x',
        '--scope',
        'backbone',
        '--batch',
        '1',
        '--size',
        '64',
    )
    static, kdna, odconv = result['rows']
    assert [row['name'] for row in result['rows']] == ['static', 'kdna', 'odconv4x']
    assert kdna['unique_params_m'] < static['unique_params_m'] < odconv['unique_params_m'] / 2


def test_fixed_proposals(tmp_path, capsys):
    """DyConv's RPN finds another number of boxes than the static net's (tests/test_measure/test_fixed_proposals.py)."""
    dyconv = tmp_path / 'dyconv.py'
    dyconv.write_text(
        f"_base_ = {str(ROOT / STATIC)!r}\nmodel = dict(backbone=dict(_delete_=True, type='DynamicConvs', "
        "conv='dyconv4x', module=_base_.model.backbone))\n"
    )
    argv = [f'static={ROOT / STATIC}', f'dyconv={dyconv}', f'seg={ROOT / SEGMENTER}', '--batch', '2', '--size', '64x96']
    result = measure(tmp_path, *argv, '--proposals', '60')
    assert result['settings']['proposals'] == 60
    assert [(row['name'], row['proposals']) for row in result['rows']] == [('static', 60), ('dyconv', 60), ('seg', None)]
    assert all(row['error'] is None and row['latency_ms'] > 0 for row in result['rows'])
    printed = capsys.readouterr().out
    assert 'no RPN, not changed by --proposals: seg' in printed and '60 fixed proposals per image' in printed
    text = (tmp_path / 'benchmark.md').read_text()
    assert '60 fixed proposals per image' in text and '| static | 2 | 64 | 96 | 60 |' in text
    assert '| seg | 2 | 64 | 96 | - |' in text
    more = measure(tmp_path, *argv, '--proposals', '100')
    for few, many in list(zip(result['rows'], more['rows']))[:2]:  # both box heads see 40 boxes of 64 x 7 x 7 more
        per_box = 64 * 7 * 7 * 256 + 256 * 256 + 256 * 7 + 256 * 6 * 4
        assert round((many['gmacs'] - few['gmacs']) * 1e9) == 40 * per_box
    assert result['rows'][2]['gmacs'] == more['rows'][2]['gmacs']


def test_config_options_reach_every_config(tmp_path):
    """A stem of 32 channels: half the 7x7 kernel and norm, half of layer1's first kernel, but a 1x1 conv on its shortcut."""
    argv = [f'static={ROOT / STATIC}', f'kdna={ROOT / DETECTOR}', '--scope', 'backbone', '--batch', '1', '--size', '64']
    result = measure(tmp_path, *argv, '--cfg-options', 'model.backbone.stem_channels=32')
    change = -32 * (3 * 7 * 7 + 2) - 64 * 32 * 9 + 64 * (32 + 2)
    assert [round(row['unique_params_m'] * 1e6) for row in result['rows']] == [11176512 + change, 8727798 + change]
    assert ', model.backbone.stem_channels=32, median' in (tmp_path / 'benchmark.md').read_text()
    assert result['settings']['cfg_options'] == {'model.backbone.stem_channels': 32}
    assert result['rows'][0]['proposals'] is None and result['settings']['proposals'] is None


def test_size_comes_from_the_config(tmp_path, recwarn):
    (row,) = measure(tmp_path, str(ROOT / SEGMENTER), '--batch', '1')['rows']
    assert (row['height'], row['width']) == (160, 160)
    assert not [w for w in recwarn if 'avg_non_ignore' in str(w.message)]


@pytest.mark.parametrize(
    'argv, message',
    [
        ([str(ROOT / STATIC), str(ROOT / STATIC)], 'write NAME=CONFIG'),
        ([str(ROOT / STATIC), '--size', '1x2x3'], "argument --size: size '1x2x3' is neither N nor HxW"),
        ([str(ROOT / STATIC), '--size', '64', '0'], "argument --size: size '0' is neither N nor HxW"),
        ([str(ROOT / 'configs/shapes/nothing.py')], 'does not exist'),
        ([str(ROOT / STATIC), '--proposals', '0'], '--proposals 0: at least 1'),
        ([str(ROOT / STATIC), '--proposals', '9', '--scope', 'backbone'], 'is for two-stage detectors with --scope model'),
        ([str(ROOT / STATIC), '--compile'], '--compile is an option of the deployed model: add --deploy'),
        ([str(ROOT / STATIC), '--cuda-graph'], '--cuda-graph is an option of the deployed model: add --deploy'),
        ([str(ROOT / SEGMENTER), '--proposals', '9'], 'no model here has an RPN'),
        ([str(ROOT / STATIC), '--proposals', '5000', '--size', '64'], 'an image of 64x64 has'),
    ],
)
def test_mistakes(argv, message, tmp_path, capsys):
    assert run_tool('benchmark.py', [*argv, *QUICK, '--out-dir', str(tmp_path)]) == 2
    assert message in capsys.readouterr().err

"""tools/derive.py: its files, and that the other tools take them."""

import json

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image
from tiny_runs import ROOT, SEGMENTER, narrow_config, narrow_options, run_tool

from mmkerneldna.errors import UsageError
from mmkerneldna.launch.sharing import parse_plan, set_sharing
from mmkerneldna.modules import count_parameters

STATIC = str(ROOT / 'configs/shapes/upernet_r18_shapes.py')
SHARED = str(ROOT / 'configs/shapes/upernet_kdna-r18_shapes.py')
NARROW = narrow_options(SEGMENTER)


@pytest.fixture(scope='module')
def static_file(tmp_path_factory):
    cfg = narrow_config(STATIC, like=SEGMENTER)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model)
    path = tmp_path_factory.mktemp('static') / 'static.pth'
    torch.save(dict(meta=dict(dataset_meta=dict(classes=('a', 'b'))), state_dict=model.state_dict()), path)
    return path


def test_a_derived_segmenter_from_a_folder_of_images(static_file, tmp_path, capsys):
    folder = tmp_path / 'images'
    folder.mkdir()
    for i in range(3):
        Image.effect_noise((80 + i, 70), 60).convert('RGB').save(folder / f'{i}.png')
    out = tmp_path / 'derived.pth'
    code = run_tool(
        'derive.py',
        [
            STATIC,
            '--from',
            str(static_file),
            '--out',
            str(out),
            '--images',
            str(folder),
            '--steps',
            '3',
            '--batch',
            '2',
            '--size',
            '64',
            '64',
            '--device',
            'cpu',
            '--residual-rank',
            '2',
            '--plan',
            'layer4.1.conv1=layer4.1.conv2',
            '--cfg-options',
            *NARROW,
        ],
    )
    assert code == 0
    printed = capsys.readouterr().out
    assert printed.startswith('derived from dense weights') and printed.count('derived from dense weights') == 1
    assert 'backbone.layer4.1.conv1' in printed and '3 steps of reconstruction' in printed
    held = torch.load(out, weights_only=True)
    assert held['meta']['dataset_meta'] == dict(classes=('a', 'b'))
    cfg = Config.fromfile(out.with_suffix('.py'))
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model)
    model.load_state_dict(held['state_dict'])  # strict
    assert model.backbone.layer4[1].conv1.residual_a.shape[0] == 2
    report = json.loads(out.with_suffix('.json').read_text())
    assert len(report['loss']) == 3 and report['parameters_before'] > report['parameters_after']
    assert Image.open(out.with_suffix('.png')).size[0] > 500 and 'layer4.1.conv1' in out.with_suffix('.txt').read_text()
    assert not out.with_suffix('.state').exists()


def test_where_a_stopped_reconstruction_goes_on_is_said(static_file, tmp_path, capsys, monkeypatch):
    out, state = tmp_path / 'derived.pth', tmp_path / 'derived.state'
    (tmp_path / 'images').mkdir()
    Image.effect_noise((80, 70), 60).convert('RGB').save(tmp_path / 'images' / '0.png')
    argv = [STATIC, '--from', str(static_file), '--out', str(out), '--images', str(tmp_path / 'images'), '--steps', '3']
    argv += ['--batch', '2', '--size', '64', '64', '--device', 'cpu', '--plan', 'layer4.1.conv1=layer4.1.conv2', '--resume']
    argv += ['--cfg-options', *NARROW]

    def stop(*args):
        raise UsageError('stopped')

    with monkeypatch.context() as patch:
        patch.setattr('mmkerneldna.derive.outputs.write_outputs', stop)
        assert run_tool('derive.py', argv) == 2
    assert f'nothing to go on with, {state} does not exist' in capsys.readouterr().out
    held = torch.load(state, weights_only=True)
    held['state'].update(step=1, taken=1, history=held['state']['history'][:1])
    torch.save(held, state)
    assert run_tool('derive.py', argv) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if 'go on' in line or 'goes on' in line]
    assert lines == [f'  reconstruction goes on after step 1 of 3: {state}'] and not state.exists()


@pytest.mark.parametrize('variant', ['odconv4x', 'kdna'])
def test_a_static_config_as_a_variant(variant, static_file, tmp_path, capsys):
    folder, out = tmp_path / 'images', tmp_path / 'derived.pth'
    folder.mkdir()
    Image.effect_noise((80, 70), 60).convert('RGB').save(folder / '0.png')
    assert (
        run_tool(
            'derive.py',
            [
                STATIC,
                '--from',
                str(static_file),
                '--out',
                str(out),
                '--images',
                str(folder),
                '--batch',
                '2',
                '--size',
                '64',
                '64',
                '--device',
                'cpu',
                '--variant',
                variant,
                '--cfg-options',
                *NARROW,
            ],
        )
        == 0
    )
    printed, report = capsys.readouterr().out, json.loads(out.with_suffix('.json').read_text())
    cfg, held = Config.fromfile(out.with_suffix('.py')), torch.load(out, weights_only=True)['state_dict']
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model)
    model.load_state_dict(held)  # strict
    assert report['parameters_after'] == count_parameters(model)
    if variant == 'kdna':
        assert len(report['children']) == 6 and not report['rivals']
        return
    assert report['rivals'] and all(row['kind'] == 'exact' for row in report['rivals'])
    assert 'ODConv2d start exactly' in printed and max(row['error'] for row in report['levels']) < 1e-5
    assert type(model.backbone.layer1[0].conv1).__name__ == 'ODConv2d' and 'mmkerneldna' in cfg.custom_imports.imports


def test_what_can_not_be_used_is_one_line(static_file, tmp_path, capsys):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'broken').mkdir()
    (tmp_path / 'broken' / 'x.png').write_bytes(b'no image')
    out = ['--out', str(tmp_path / 'derived.pth'), '--device', 'cpu']
    narrow = ['--cfg-options', *NARROW]
    cases = [
        ([STATIC, '--from', str(static_file), '--out', str(tmp_path / 'x.txt')], 'must end in .pth'),
        ([SHARED, '--from', str(tmp_path / 'none.pth'), *out], 'does not exist'),
        ([SHARED, '--from', str(static_file), *out], 'of another shape'),
        ([SHARED, '--from', str(static_file), *out, '--images', str(tmp_path / 'empty'), *narrow], 'no image below'),
        ([SHARED, '--from', str(static_file), *out, '--images', str(tmp_path / 'broken'), *narrow], "can't be read"),
        ([STATIC, '--from', str(static_file), *out, '--residual-rank', '4'], 'add --plan'),
        ([STATIC, '--from', str(static_file), *out, *narrow], 'neither children nor dynamic layers'),
        ([SHARED, '--from', str(static_file), *out, '--variant', 'odconv4x', *narrow], 'has a KDNAResNet already'),
        ([STATIC, '--from', str(static_file), *out, '--plan', 'redundancy:0.1', *narrow], 'the lowest that ResNet'),
    ]
    for argv, message in cases:
        assert run_tool('derive.py', argv) == 2, argv
        error = capsys.readouterr().err
        assert error.startswith('error: ') and message in error and error.count('\n') == 1, error
    assert not (tmp_path / 'derived.pth').exists()


def test_a_plan_from_a_budget_is_written_as_it_came_out(static_file, tmp_path, capsys):
    out = tmp_path / 'derived.pth'
    policy = '{"type": "redundancy", "budget": 0.7, "spatial_scale": false}'
    assert (
        run_tool(
            'derive.py',
            [
                STATIC,
                '--from',
                str(static_file),
                '--out',
                str(out),
                '--device',
                'cpu',
                '--plan',
                policy,
                '--cfg-options',
                *NARROW,
            ],
        )
        == 0
    )
    backbone = Config.fromfile(out.with_suffix('.py')).model.backbone
    assert backbone.plan and all(set(value) == {'parent', 'spatial_scale'} for value in backbone.plan.values())
    with DefaultScope.overwrite_default_scope('mmseg'):
        shared, dense = MODELS.build(backbone), MODELS.build(backbone.module)
    state = torch.load(out, weights_only=True)['state_dict']
    shared.load_state_dict({key[9:]: value for key, value in state.items() if key.startswith('backbone.')})  # strict
    assert count_parameters(shared) <= 0.7 * count_parameters(dense)
    assert (
        run_tool(
            'derive.py',
            [
                SHARED,
                '--from',
                str(static_file),
                '--out',
                str(out),
                '--device',
                'cpu',
                '--plan',
                'redundancy:0.2',
                '--cfg-options',
                *NARROW,
            ],
        )
        == 2
    )
    assert 'grow=True' in capsys.readouterr().err


def test_plans_of_the_command_line(tmp_path):
    (tmp_path / 'plan.json').write_text('{"a.0": "a.1"}')
    assert parse_plan('resnet18') == 'resnet18'
    assert parse_plan('redundancy:0.5') == dict(type='redundancy', budget=0.5)
    assert parse_plan('a.0=a.1,b.0=b.1') == {'a.0': 'a.1', 'b.0': 'b.1'}
    assert parse_plan(str(tmp_path / 'plan.json')) == parse_plan('{"a.0": "a.1"}') == {'a.0': 'a.1'}
    for text in ('a=', '{"a"', 'a=b=c', 'nowhere.json', 'redundancy:half'):
        with pytest.raises(UsageError, match='--plan'):
            parse_plan(text)


def test_a_plan_replaces_the_one_of_the_config():
    cfg = Config(dict(model=dict(backbone=dict(type='KDNAResNet', depth=18))))
    set_sharing(cfg, {'a': 'b'}, 4)
    assert cfg.model.backbone == dict(type='KDNAResNet', depth=18, sharing={'a': 'b'}, residual_rank=4)
    cfg = Config(dict(model=dict(backbone=dict(type='ResNet', depth=18))))
    set_sharing(cfg, 'auto')
    assert cfg.model.backbone == dict(type='KernelDNA', module=dict(type='ResNet', depth=18), plan='auto')
    set_sharing(cfg, 'resnet18', 2)
    assert cfg.model.backbone.plan == 'resnet18' and cfg.model.backbone.residual_rank == 2

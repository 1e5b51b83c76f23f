"""--variant NAME: what it makes of any config, and what it says where it can't."""

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmkerneldna.errors import UsageError
from mmkerneldna.hooks import RoutingLossHook, TemperatureHook
from mmkerneldna.launch.config import load_config
from mmkerneldna.launch.variant import add_layer_hooks, use_variant, vary
from mmkerneldna.layers import ChildConv2d, MoEConv2d, ODConv2d

TINY = 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'


def config(backbone, neck=None, **more):
    return Config(
        dict(model=dict(type='X', backbone=backbone, **(dict(neck=neck) if neck else {}), **more), default_scope='mmdet')
    )


def resnet(**options):
    return dict(type='ResNet', depth=18, init_cfg=dict(type='Pretrained', checkpoint='x'), **options)


def built(cfg, part='backbone'):
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model[part])


def count(net, kind):
    return sum(isinstance(m, kind) for m in net.modules())


@pytest.mark.parametrize(
    'kind, expected', [('ResNet', {}), ('mmdet.ResNet', {}), ('ResNetV1d', dict(deep_stem=True, avg_down=True))]
)
def test_kdna_makes_the_papers_net_of_a_resnet(kind, expected):
    cfg = config(resnet(frozen_stages=1) | dict(type=kind))
    use_variant(cfg, 'kdna')
    weights = dict(type='Pretrained', checkpoint='x')  # derived when the training starts
    assert cfg.model.backbone == dict(type='KDNAResNet', depth=18, init_cfg=weights, frozen_stages=1, **expected)
    assert cfg.variant == 'kdna' and cfg.custom_imports.imports == ['mmkerneldna']
    assert count(built(cfg), ChildConv2d) == 6


def test_kdna_of_a_net_that_the_paper_has_not_shares_by_the_automatic_policy():
    cfg = load_config(TINY, variant='kdna')
    assert cfg.model.backbone.type == 'KernelDNA' and cfg.model.backbone.module.type == 'CSPNeXt'
    assert count(built(cfg), ChildConv2d) > 0


def test_kdna_of_a_deformable_resnet_shares_what_is_plain():
    dcn = dict(dcn=dict(type='DCNv2', deform_groups=1), stage_with_dcn=(False, True, True, True))
    cfg = config(dict(resnet(**dcn), depth=50, base_channels=32))
    use_variant(cfg, 'kdna')
    net = built(cfg)
    assert count(net, ChildConv2d) > 0
    assert not any('conv_offset' in path for path, m in net.named_modules() if isinstance(m, ChildConv2d))


def test_a_rival_thaws_frozen_stages_and_keeps_the_weights():
    cfg = config(resnet(frozen_stages=1, norm_eval=True))
    use_variant(cfg, 'odconv4x')
    inner = cfg.model.backbone.module
    assert cfg.model.backbone.conv == 'odconv4x' and inner.frozen_stages == -1 and inner.init_cfg.checkpoint == 'x'
    assert all(p.requires_grad for p in built(cfg).parameters())


def test_custom_imports_may_be_one_name():
    cfg = config(resnet())
    cfg.custom_imports = dict(imports='mmdet.models', allow_failed_imports=False)
    use_variant(cfg, 'se')
    assert cfg.custom_imports.imports == ['mmdet.models', 'mmkerneldna']


def test_nothing_frozen_is_0_in_an_efficientnet():
    part = dict(type='EfficientNet', arch='b0', frozen_stages=0)
    assert vary(part, 'se')['module'] == part and vary(dict(part, frozen_stages=2), 'se')['module'] == part


def test_static_changes_nothing_but_the_name():
    cfg = load_config(TINY, variant='static')
    assert cfg.model == load_config(TINY).model and cfg.variant == 'static'


def test_options_reach_the_net_inside(tmp_path):
    options = {'model.backbone.deepen_factor': 0.33, 'model.backbone.exclude': ['stage4.*'], 'model.neck.num_outs': 4}
    cfg = load_config(TINY, options, variant='se')
    assert cfg.model.backbone.module.deepen_factor == 0.33 and cfg.model.backbone.exclude == ['stage4.*']
    assert 'deepen_factor' not in cfg.model.backbone and cfg.model.neck.num_outs == 4


def test_a_tracker_and_a_semi_supervised_detector_have_it_a_level_deeper():
    cfg = Config(
        dict(
            model=dict(type='Y', detector=dict(type='X', backbone=resnet()), reid=dict(backbone=resnet())),
            default_scope='mmdet',
        )
    )
    use_variant(cfg, 'se')
    assert cfg.model.detector.backbone.type == 'DynamicConvs' and cfg.model.reid.backbone.type == 'ResNet'


SWIN = dict(type='SwinTransformer', embed_dims=24, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2))
FPN = dict(type='FPN', in_channels=[24, 48, 96, 192], out_channels=32, num_outs=5)


@pytest.mark.parametrize('name', ['kdna', 'odconv4x'])
@pytest.mark.parametrize(
    'neck', [FPN, [FPN, dict(type='DyHead', in_channels=32, out_channels=32, num_blocks=1)]], ids=['one', 'list']
)
def test_a_transformer_gives_its_neck(name, neck):
    cfg = config(SWIN, neck)
    use_variant(cfg, name)
    changed = cfg.model.neck[0] if isinstance(neck, list) else cfg.model.neck
    assert cfg.model.backbone == SWIN and changed.module.type == 'FPN'
    with DefaultScope.overwrite_default_scope('mmdet'):
        net = MODELS.build(changed)
    net.train()([torch.randn(2, c, 8, 8) for c in FPN['in_channels']])
    assert count(net, (ChildConv2d, ODConv2d)) > 0


@pytest.mark.parametrize(
    'backbone, name, message',
    [
        (SWIN, 'odconv4x', 'odconv4x finds nothing to change in this model. SwinTransformer: .*behind its stem: 1 Conv2d'),
        (SWIN, 'kdna', 'kdna finds nothing to change.*SwinTransformer: the automatic policy'),
        (resnet(conv_cfg=dict(type='ConvWS')), 'se', 'layer1.0.conv1: it is a ConvWS2d, not a plain Conv2d'),
        (resnet(), 'odconv5x', "no variant is named 'odconv5x'; nearest: odconv"),
        (dict(type='KDNAResNet', depth=18), 'kdna', 'has a KDNAResNet already'),
        (dict(type='ResNet', depth=19), 'kdna', 'the ResNet of this config cannot be built: .*invalid depth 19'),
        (dict(type='mmpretrain.ConvNeXt'), 'se', 'the ConvNeXt of this config cannot be built'),
    ],
)
def test_what_cannot_be_done_is_one_message_and_changes_nothing(backbone, name, message):
    cfg = config(backbone)
    before = cfg.model.to_dict()
    with pytest.raises(UsageError, match='(?s)' + message):
        use_variant(cfg, name)
    assert cfg.model.to_dict() == before


def test_a_model_without_a_backbone():
    with pytest.raises(UsageError, match='Y has no backbone'):
        use_variant(Config(dict(model=dict(type='Y'))), 'kdna')


class FakeRunner:
    def __init__(self, model, hooks=()):
        self.model, self.hooks = model, list(hooks)

    def register_hook(self, hook: Hook):
        self.hooks.append(hook)


def test_the_hooks_that_the_layers_call_for_are_added_once_and_the_users_own_win():
    od, moe = ODConv2d(4, 4, 3), MoEConv2d(4, 4, 3)
    runner = FakeRunner(nn.Sequential(od, moe))
    add_layer_hooks(runner)
    add_layer_hooks(runner)
    assert [type(hook) for hook in runner.hooks] == [TemperatureHook, RoutingLossHook]
    own = TemperatureHook(start=3, end=1, length=2)
    runner = FakeRunner(nn.Sequential(od), [own])
    add_layer_hooks(runner)
    assert runner.hooks == [own]
    runner = FakeRunner(nn.Conv2d(4, 4, 3))
    add_layer_hooks(runner)
    assert runner.hooks == []

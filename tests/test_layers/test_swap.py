import logging

import pytest
import torch
from mmdet.models import FPN, CSPNeXt, MobileNetV2, ResNet
from mmdet.structures import DetDataSample
from mmengine.hub import get_config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData
from mmseg.models import ResNetV1c
from torch import nn

from mmkerneldna.errors import UsageError
from mmkerneldna.layers import DCDConv2d, FDConv2d, ODConv2d, SwapError, swap_convs
from mmkerneldna.layers.swap import describe_swap
from mmkerneldna.sharing import share_kernels

OD = dict(type='ODConv2d', num_experts=2)


def dynamic_paths(net, kind=ODConv2d):
    return [path for path, m in net.named_modules() if isinstance(m, kind)]


def small_resnet(**options):
    return ResNet(depth=18, base_channels=16, **options)


def test_a_config_builds_the_inner_module_with_swapped_convs():
    cfg = dict(
        type='DynamicConvs',
        conv=OD,
        include=['layer3.*.conv2'],
        exclude=['layer3.1.*'],
        module=dict(type='mmdet.ResNet', depth=18, base_channels=16, norm_eval=False),
    )
    net = MODELS.build(cfg)
    assert type(net) is ResNet and dynamic_paths(net) == ['layer3.0.conv2']
    net.init_weights()
    outputs = net(torch.randn(1, 3, 64, 64))
    assert [y.shape[1] for y in outputs] == [16, 32, 64, 128]


def test_injected_arguments_reach_the_inner_module():
    net = MODELS.build(
        dict(
            type='DynamicConvs',
            conv=OD,
            include=['*'],
            num_outs=3,
            module=dict(type='mmdet.FPN', in_channels=[8, 16], out_channels=8),
        )
    )
    assert isinstance(net, FPN) and net.num_outs == 3
    assert len(dynamic_paths(net)) == 4


def test_geometry_mode_and_bias_are_kept():
    old = nn.Conv2d(4, 8, (3, 1), (2, 1), (1, 0), (2, 1), 2, bias=True, padding_mode='reflect')
    net = nn.Sequential(old, nn.ReLU()).double().eval()
    new = swap_convs(net, OD, ['0'])[0]
    for name in (
        'in_channels',
        'out_channels',
        'kernel_size',
        'stride',
        'padding',
        'dilation',
        'groups',
        'padding_mode',
        'training',
    ):
        assert getattr(new, name) == getattr(old, name), name
    assert new.bias is not None and new.weight.dtype == torch.double
    x = torch.randn(2, 4, 9, 9).double()
    assert net(x).shape == old(x).shape


def test_globs_and_regular_expressions_select_the_same():
    globbed = swap_convs(small_resnet(), OD, ['layer[34].*.conv2'])
    matched = swap_convs(small_resnet(), OD, [r're:layer(3|4)\.\d\.conv2'])
    assert dynamic_paths(globbed) == dynamic_paths(matched) == [f'layer{i}.{j}.conv2' for i in (3, 4) for j in (0, 1)]


@pytest.mark.parametrize(
    'kind, net, count, first, absent',
    [
        ('ODConv2d', small_resnet, 16, 'layer1.0.conv1', 'layer2.0.downsample.0'),
        ('SEConv2d', small_resnet, 16, 'layer1.0.conv1', 'layer2.0.downsample.0'),
        ('DCDConv2d', small_resnet, 16, 'layer1.0.conv1', 'layer2.0.downsample.0'),
        ('DyConv2d', small_resnet, 19, 'layer1.0.conv1', 'conv1'),
        ('CondConv2d', small_resnet, 6, 'layer3.1.conv1', 'layer3.0.conv1'),
        ('CondConv2d', lambda: ResNet(50, base_channels=8), 9, 'layer4.0.conv1', 'layer3.5.conv1'),
        ('ODConv2d', lambda: MobileNetV2(0.25), 51, 'layer1.0.depthwise_conv.conv', 'conv1.conv'),
        ('DCDConv2d', lambda: MobileNetV2(0.25), 32, 'layer2.0.expand_conv.conv', 'layer1.0.linear_conv.conv'),
        ('ODConv2d', lambda: ResNetV1c(depth=18, base_channels=16), 16, 'layer1.0.conv1', 'stem.0'),
    ],
)
def test_paper_patterns(kind, net, count, first, absent):
    net = swap_convs(net(), dict(type=kind))
    paths = dynamic_paths(net, MODELS.get(kind))
    assert len(paths) == count and paths[0] == first and absent not in paths
    net.eval()
    net(torch.randn(1, 3, 64, 64))


def test_a_conv_under_two_names_stays_one():
    shared = nn.Conv2d(4, 4, 3)
    net = nn.ModuleDict(dict(a=shared, b=nn.Sequential(shared)))
    swap_convs(net, OD, ['a'])
    assert net['a'] is net['b'][0] and isinstance(net['a'], ODConv2d)


def test_a_static_checkpoint_loads_into_a_swapped_net():
    static = small_resnet()
    net = swap_convs(small_resnet(), OD)
    result = net.load_state_dict(static.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert all('.attention.' in key for key in result.missing_keys)
    kernel = static.layer4[1].conv2.weight
    # three sigmoids that start at one half
    torch.testing.assert_close(net.layer4[1].conv2.weight, torch.stack([kernel * 8] * 2))


def test_the_inner_init_cfg_seeds_the_experts(tmp_path):
    static = small_resnet()
    torch.save(static.state_dict(), tmp_path / 'static.pth')
    inner = dict(
        type='mmdet.ResNet',
        depth=18,
        base_channels=16,
        init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'static.pth')),
    )
    net = MODELS.build(dict(type='DynamicConvs', module=inner, conv=dict(type='DyConv2d')))
    net.init_weights()
    assert torch.equal(net.conv1.weight, static.conv1.weight)
    torch.testing.assert_close(net.layer2[0].conv1.weight, torch.stack([static.layer2[0].conv1.weight] * 4))


@pytest.mark.parametrize('kind', ['CondConv2d', 'DyConv2d', 'DCDConv2d', 'ODConv2d', 'SEConv2d'])
def test_a_detector_trains_on_one_image(kind):
    cfg = get_config('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py').model
    inner = dict(cfg.backbone, base_channels=8, init_cfg=None)
    cfg.neck.update(in_channels=[8, 16, 32, 64], out_channels=8)
    cfg.bbox_head.update(in_channels=8, feat_channels=8)
    cfg.backbone = dict(type='DynamicConvs', module=inner, conv=dict(type=kind))
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = MODELS.build(cfg)
        detector.init_weights()
        detector.train()
        sample = DetDataSample(metainfo=dict(img_shape=(64, 64), batch_input_shape=(64, 64), pad_shape=(64, 64)))
        sample.gt_instances = InstanceData(bboxes=torch.tensor([[8.0, 8.0, 40.0, 40.0]]), labels=torch.tensor([1]))
        losses, _ = detector.parse_losses(detector.loss(torch.randn(1, 3, 64, 64), [sample]))
    assert torch.isfinite(losses)
    losses.backward()


def test_the_log_is_a_table():
    conv, new = nn.Conv2d(64, 64, 3, stride=2, bias=False), ODConv2d(64, 64, 3, stride=2, bias=False)
    table = describe_swap('ODConv2d', {'layer1.0.conv1': conv}, {'layer1.0.conv1': new})
    head, row = table.split('\n')
    size = sum(p.numel() for p in new.parameters())
    assert head == f'1 convolution -> ODConv2d, 0.04 M -> {size / 1e6:.2f} M parameters'
    assert row.split() == ['layer1.0.conv1', '64', '->', '64', '3x3', 'stride', '2', 'groups', '1', '36,864', '->', f'{size:,}']


class Grouped(nn.Conv2d):
    """A layer whose instances depend on one another."""

    built = None

    @classmethod
    def build_swapped(cls, convs, scale):
        cls.built = (list(convs), scale)
        return {path: cls(c.in_channels, c.out_channels, c.kernel_size) for path, c in convs.items()}


def test_layers_that_belong_together_are_built_together():
    net = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 3))
    swap_convs(net, dict(type=Grouped, scale=3), ['*'])
    assert Grouped.built == (['0', '1'], 3) and type(net[0]) is type(net[1]) is Grouped


def unchanged(net, *args, match):
    before = list(net.modules())
    with pytest.raises(SwapError, match=match):
        swap_convs(net, *args)
    assert list(net.modules()) == before


def test_a_pattern_that_matches_nothing():
    unchanged(small_resnet(), OD, ['layer3.*', 'layer3.0.covn2'], match=r"'layer3.0.covn2' matches no.*layer3.0.conv2")
    unchanged(small_resnet(), OD, ['*'], ['re:leyer4.*'], match=r"'re:leyer4.\*' matches no")
    unchanged(small_resnet(), OD, ['layer3.*'], ['layer*'], match='leaves no convolution')
    unchanged(small_resnet(), OD, 'layer3.*', match='must be a list')


def test_a_conv_the_method_cannot_do():
    grouped = nn.Sequential(*(nn.Conv2d(8, 8, 3, groups=groups) for groups in (1, 2, 8, 4)))
    unchanged(grouped, dict(type='DCDConv2d'), ['*'], match=r'cannot replace 2 of.*\n  1: .*groups=2.*\n  3: .*groups=4')
    unchanged(nn.Sequential(nn.Conv2d(8, 8, 1)), dict(type='DyConv2d', num_experts=0), ['*'], match='num_experts=0')


def test_convs_that_are_more_than_a_kernel():
    unchanged(nn.Sequential(nn.ConvTranspose2d(4, 4, 2)), OD, ['*'], match='0: it is a ConvTranspose2d, not')
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    share_kernels(net, {'0': '1'})
    unchanged(net, OD, ['0'], match='0: it is a ChildConv2d')
    unchanged(net, OD, ['1'], match='1: its kernel is also that of 0')
    unchanged(swap_convs(small_resnet(), OD), OD, match='it is a ODConv2d')


def test_a_net_that_no_paper_names_gives_its_spatial_convs_behind_the_stem():
    net = swap_convs(CSPNeXt(widen_factor=0.125), OD)
    paths = dynamic_paths(net)
    assert paths and all(max(net.get_submodule(path).kernel_size) > 1 for path in paths)
    static = CSPNeXt(widen_factor=0.125)
    left = [path for path, m in static.named_modules() if isinstance(m, nn.Conv2d) and path not in paths]
    assert all(path.startswith('stem') or static.get_submodule(path).kernel_size == (1, 1) for path in left)
    assert {'stage1.0.conv', 'stage1.1.blocks.0.conv2.depthwise_conv.conv'} <= set(paths)


class Attention(nn.Module):
    """A pool, and a conv of what it leaves."""

    def __init__(self):
        super().__init__()
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1)


def test_a_net_of_1x1_convs_gives_those_behind_the_stem_and_no_attention():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), Attention(), nn.Conv2d(8, 8, 1))
    assert dynamic_paths(swap_convs(net, OD)) == ['1', '3']


def test_the_offsets_of_deformable_convs_stay():
    net = swap_convs(
        ResNet(50, base_channels=8, dcn=dict(type='DCNv2', deform_groups=1), stage_with_dcn=(False, True, False, False)), OD
    )
    paths = dynamic_paths(net)
    assert 'layer2.0.conv1' in paths and not any('conv2' in path for path in paths if path.startswith('layer2'))
    assert net.layer2[0].conv2.conv_offset.weight.abs().sum() == 0


def test_what_a_layer_refuses_of_its_default_stays_and_is_said(monkeypatch):
    messages = []
    monkeypatch.setattr('mmkerneldna.layers.swap.print_log', lambda message, **_: messages.append(message))
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, groups=2))
    assert dynamic_paths(swap_convs(net, dict(type='DCDConv2d')), DCDConv2d) == ['1']
    assert '1 convolutions stay as they are:\n  2: ' in messages[1] and 'groups=2' in messages[1]


def test_a_net_without_convs_behind_its_stem():
    unchanged(nn.Sequential(nn.Conv2d(3, 8, 7), nn.Linear(8, 8)), OD, match='no convolution to swap behind its stem: 1 Conv2d')


def test_a_variant_by_name():
    assert small_resnet_of('odconv4x').layer1[0].conv1.num_experts == 4
    assert small_resnet_of('dcd').layer1[0].conv1.fusion.pool_size == 2
    mobile = swap_convs(MobileNetV2(0.25), 'fdconv')
    assert len(dynamic_paths(mobile, FDConv2d)) == 33
    with pytest.raises(UsageError, match="'odconv3x'; nearest: .*odconv4x"):
        swap_convs(small_resnet(), 'odconv3x')
    unchanged(small_resnet(), 'kdna', match='replaces no convolution')


def small_resnet_of(name):
    return swap_convs(small_resnet(), name)


def test_a_wrong_conv_config():
    unchanged(small_resnet(), dict(num_experts=4), match="with a 'type'")
    unchanged(small_resnet(), dict(type='OmniConv'), match="'OmniConv' is registered nowhere")
    with pytest.raises(TypeError, match='num_expert'):
        swap_convs(small_resnet(), dict(type='ODConv2d', num_expert=4))


def test_frozen_stages_are_warned_of(monkeypatch):
    messages = []
    monkeypatch.setattr(
        'mmkerneldna.layers.swap.print_log', lambda message, logger=None, level=logging.INFO: messages.append((level, message))
    )
    swap_convs(small_resnet(frozen_stages=1), OD)
    assert [message for level, message in messages if level == logging.WARNING] == [
        '4 swapped convolutions lie in frozen stages (layer1.0.conv1, ...): their attention will not train either. '
        'Lower frozen_stages, or exclude them from the swap'
    ]
    assert 'layer1.0.conv1' in messages[0][1] and messages[0][0] == logging.INFO

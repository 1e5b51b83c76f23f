import pytest
import torch
from helpers import conv_gmacs
from mmdet.models.backbones import ResNet
from mmseg.models.backbones import ResNetV1c as SegResNetV1c
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmkerneldna.backbones import KDNAResNet
from mmkerneldna.layers import ChildConv2d
from mmkerneldna.sharing import PLANS, SharingPlanError

HEAD = {18: 512 * 1000 + 1000, 34: 512 * 1000 + 1000, 50: 2048 * 1000 + 1000, 101: 2048 * 1000 + 1000}


# Design figures, ImageNet head included: M parameters, GMACs at 224.
@pytest.mark.parametrize('depth, params, gmacs', [(18, 9.24, 2.277), (50, 22.78, 4.308)])
def test_paper_cost(depth, params, gmacs):
    net = KDNAResNet(depth)
    assert sum(p.numel() for p in net.parameters()) + HEAD[depth] == pytest.approx(params * 1e6, abs=5e3)
    assert conv_gmacs(net) + HEAD[depth] / 1e9 == pytest.approx(gmacs, abs=1e-3)


@pytest.mark.parametrize('depth, children', [(18, 6), (34, 11), (50, 4), (101, 12)])
def test_children_of_each_depth(depth, children):
    net = KDNAResNet(depth)
    found = {path: m for path, m in net.named_modules() if isinstance(m, ChildConv2d)}
    assert len(found) == children
    for child, parent in PLANS[f'resnet{depth}'].children.items():
        assert found[child].weight is net.get_submodule(parent).weight


def test_unknown_depth_and_plan():
    with pytest.raises(ValueError, match='no depth 20; it has 18, 34, 50, 101'):
        KDNAResNet(20)
    with pytest.raises(SharingPlanError, match="did you mean .*'resnet18'"):
        KDNAResNet(18, sharing='resnet19')
    with pytest.raises(SharingPlanError, match='KDNAResNet has no layer3.3.conv2'):
        KDNAResNet(18, sharing='resnet50')


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(),
        dict(style='caffe'),
        dict(deep_stem=True),
        dict(deep_stem=True, avg_down=True),
        dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
        dict(base_channels=16),
        dict(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2,)),
    ],
)
def test_same_feature_shapes_as_upstream(kwargs):
    x = torch.rand(1, 3, 65, 97)
    ours, theirs = KDNAResNet(50, **kwargs).train(), ResNet(50, **kwargs)
    assert [o.shape for o in ours(x)] == [o.shape for o in theirs(x)]


def test_mmseg_options():
    kwargs = dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), contract_dilation=True, multi_grid=(1, 2, 4))
    x = torch.rand(1, 3, 64, 64)
    ours = KDNAResNet(50, deep_stem=True, **kwargs)
    theirs = SegResNetV1c(depth=50, **kwargs)
    assert [o.shape for o in ours(x)] == [o.shape for o in theirs(x)]
    assert ours.layer4[1].conv2.dilation == theirs.layer4[1].conv2.dilation == (2, 2)
    assert isinstance(ours.layer4[1].conv2, ChildConv2d)


def test_without_gate_and_modulation_it_is_the_static_net():
    """With gates held at one, a shared net equals the static one that carries the parent's kernel twice."""
    shared, static = KDNAResNet(18, base_channels=8).eval(), KDNAResNet(18, base_channels=8, sharing=None).eval()
    state = {k: v for k, v in shared.state_dict().items() if 'gate' not in k and 'scale' not in k}
    state.update({f'{child}.weight': state[f'{parent}.weight'] for child, parent in PLANS['resnet18'].children.items()})
    static.load_state_dict(state, strict=True)
    for m in shared.modules():
        if isinstance(m, ChildConv2d):
            nn.init.zeros_(m.gate.fc2.weight)
            nn.init.constant_(m.gate.fc2.bias, 40.0)
    x = torch.rand(2, 3, 64, 64)
    for ours, expected in zip(shared(x), static(x)):
        torch.testing.assert_close(ours, expected)


def test_static_depth_baseline_has_no_child():
    net = KDNAResNet(50, sharing=None)
    assert not any(isinstance(m, ChildConv2d) for m in net.modules())
    assert [len(getattr(net, f'layer{i}')) for i in range(1, 5)] == [3, 4, 7, 3]


def test_plugins_and_with_cp():
    plugin = dict(cfg=dict(type='ContextBlock', ratio=1 / 4), stages=(False, False, True, True), position='after_conv3')
    net = KDNAResNet(50, base_channels=8, plugins=[plugin], with_cp=True)
    x = torch.rand(1, 3, 64, 64, requires_grad=True)
    sum(o.sum() for o in net(x)).backward()
    assert net.layer3[1].conv2.gate.fc1.weight.grad is not None


def test_frozen_stage_keeps_its_adapters_alive():
    net = KDNAResNet(18, base_channels=8, frozen_stages=3, norm_eval=False).train()
    child = net.layer3[0].conv2
    assert not child.weight.requires_grad and not net.layer3[0].conv1.weight.requires_grad
    assert all(p.requires_grad for p in child.adapter_parameters())
    assert child.gate.norm.training and not net.layer3[0].bn2.training
    assert net.layer4[0].conv2.weight.requires_grad


def test_adapters_freeze_when_asked():
    net = KDNAResNet(18, base_channels=8, frozen_stages=3, freeze_adapters=True).train()
    assert not any(p.requires_grad for p in net.layer3.parameters())
    assert not net.layer3[0].conv2.gate.norm.training


def test_norm_eval_covers_the_gates():
    net = KDNAResNet(18, base_channels=8, norm_eval=True).train()
    assert not any(m.training for m in net.modules() if isinstance(m, _BatchNorm))


def test_a_live_child_of_a_frozen_parent_is_a_choice():
    plan = {'layer2.1.conv2': 'layer1.0.conv2'}
    kwargs = dict(base_channels=8, frozen_stages=1)
    # All stages of one width, or no kernel would fit across them.
    with pytest.raises(SharingPlanError, match='layer2.1.conv2 would borrow a kernel that frozen_stages freezes'):
        KDNAResNet(18, sharing=plan, **kwargs)
    inside = KDNAResNet(18, sharing={'layer1.1.conv2': 'layer1.0.conv2'}, **kwargs)
    assert not inside.layer1[0].conv2.weight.requires_grad


def test_a_frozen_child_does_not_freeze_its_live_parent():
    from mmkerneldna.backbones.shared_backbone import thaw_adapters
    from mmkerneldna.sharing import share_kernels

    net = nn.ModuleDict({'layer1': nn.Sequential(nn.Conv2d(4, 4, 3)), 'layer2': nn.Sequential(nn.Conv2d(4, 4, 3))})
    share_kernels(net, {'layer1.0': 'layer2.0'})
    for p in net['layer1'].parameters():
        p.requires_grad = False
    thaw_adapters(net, ['layer1'], freeze_adapters=False, norm_eval=False)
    assert net['layer2'][0].weight.requires_grad and net['layer1'][0].filter_scale.requires_grad
    assert not net['layer1'][0].bias.requires_grad


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_resolves_under_both_scopes(scope):
    import importlib

    registry = importlib.import_module(f'{scope}.registry').MODELS
    net = registry.build(dict(type='KDNAResNet', depth=18, base_channels=8))
    assert isinstance(net, KDNAResNet)


def test_init_weights_reaches_gates_and_shared_kernels():
    net = KDNAResNet(18, base_channels=8)
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(7.0)
    net.init_weights()
    child = net.layer3[0].conv2
    assert child.weight is net.layer3[1].conv2.weight
    for weight in (child.weight, child.gate.fc1.weight, child.gate.fc2.weight):
        fan_out = weight.shape[0] * weight.shape[2] * weight.shape[3]
        assert weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.4)


def test_resnext_plans_fit_upstream():
    from mmdet.models.backbones import ResNeXt

    from mmkerneldna.sharing import share_kernels

    net = ResNeXt(depth=50, groups=32, base_width=4)
    before = sum(p.numel() for p in net.parameters())
    share_kernels(net, 'resnext50')
    assert before - sum(p.numel() for p in net.parameters()) > 3e6
    x = torch.rand(1, 3, 64, 64)
    assert net(x)[-1].shape == (1, 2048, 2, 2)

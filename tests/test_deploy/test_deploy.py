"""A deployed model against the original, with randomised BN statistics and modulations."""

import copy

import pytest
import torch
from helpers import assert_same
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmcv.cnn import ConvModule, fuse_conv_bn
from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval
from mmengine.registry import MODELS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import mmkerneldna  # noqa: F401
from mmkerneldna.deploy import DeployError, deploy
from mmkerneldna.deploy.bake import FoldedGate, GatedConv, ScaledByGate
from mmkerneldna.layers import ChildConv2d
from mmkerneldna.sharing import share_kernels


def randomised(model, seed=0):
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.3, 3)
        if isinstance(module, _BatchNorm) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.5)
        if isinstance(module, ChildConv2d):
            nn.init.normal_(module.filter_scale, 0, 0.3)
            if module.spatial_scale is not None:
                nn.init.normal_(module.spatial_scale, 0, 0.3)
    return model.eval()


@torch.no_grad()
def check(model, x, **kwargs):
    expected = model(x)
    deployed = deploy(model, **kwargs)
    assert_same(deployed(x), expected)
    assert not any(isinstance(m, ChildConv2d) for m in deployed.modules())
    return deployed


NETS = dict(
    r18=dict(type='KDNAResNet', depth=18, base_channels=8),
    r34=dict(type='KDNAResNet', depth=34, base_channels=8),
    r50=dict(type='KDNAResNet', depth=50, base_channels=8, frozen_stages=1),
    r101=dict(type='KDNAResNet', depth=101, base_channels=8),
    r50_v1d=dict(type='KDNAResNet', depth=50, base_channels=8, deep_stem=True, avg_down=True, with_cp=True),
    r50_caffe=dict(
        type='KDNAResNet',
        depth=50,
        base_channels=8,
        style='caffe',
        dilations=(1, 1, 2, 4),
        strides=(1, 2, 1, 1),
        contract_dilation=True,
    ),
    r18_static=dict(type='KDNAResNet', depth=18, base_channels=8, sharing=None),
    mobilenet=dict(type='KDNAMobileNetV2', widen_factor=0.5, out_indices=(1, 2, 4, 7)),
)


@pytest.mark.parametrize('name', NETS)
def test_backbones(name):
    model = randomised(MODELS.build(NETS[name]))
    children = sum(isinstance(m, ChildConv2d) for m in model.modules())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    deployed = check(model, torch.randn(3, 3, 64, 96))
    assert not any(isinstance(m, _BatchNorm) for m in deployed.modules())
    report = deployed.deploy_report
    assert report.convs_baked == children == sum(isinstance(m, FoldedGate) for m in deployed.modules())
    assert report.norms_left == report.others_left == {}
    assert report.params_after == sum(p.numel() for p in deployed.parameters())
    assert len({p.data_ptr() for p in deployed.parameters()}) == len(list(deployed.parameters()))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Pair(nn.Module):
    """Two convs of one shape, norms registered before their convs and in the other order."""

    def __init__(self, kernel, groups, bias, stride, dilation, mode):
        super().__init__()
        options = dict(groups=groups, bias=bias, padding=kernel // 2 * dilation, dilation=dilation, padding_mode=mode)
        self.norm2, self.norm1 = nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False)
        self.first = nn.Conv2d(8, 8, kernel, stride=stride, **options)
        self.second = nn.Conv2d(8, 8, kernel, **options)

    def forward(self, x):
        return self.norm2(self.second(self.norm1(self.first(x)).relu()))


@settings(deadline=None, max_examples=15, suppress_health_check=list(HealthCheck))
@given(
    kernel=st.sampled_from([1, 3]),
    groups=st.sampled_from([1, 4]),
    bias=st.booleans(),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    mode=st.sampled_from(['zeros', 'reflect']),
    reduction=st.sampled_from([1, 4, 8]),
    norm=st.sampled_from(['BN', 'LN', 'GN', 'SyncBN', None]),
)
def test_any_child(kernel, groups, bias, stride, dilation, mode, reduction, norm):
    torch.manual_seed(0)
    model = Pair(kernel, groups, bias, stride, dilation, mode)
    norm_cfg = norm and dict(type=norm, **(dict(num_groups=1) if norm == 'GN' else {}))
    share_kernels(model, {'first': 'second'}, dict(norm_cfg=norm_cfg, reduction=reduction))
    deployed = check(randomised(model), torch.randn(2, 8, 9, 11))
    assert isinstance(deployed.first, GatedConv)
    assert isinstance(deployed.first.gate, ScaledByGate if norm in ('LN', 'GN') else FoldedGate)
    assert deployed.deploy_report.norms_folded == 2 + (norm in ('BN', 'SyncBN'))


class Traps(nn.Module):
    """What looks like conv and norm but must not be folded, or only with care."""

    def __init__(self):
        super().__init__()
        conv = lambda: nn.Conv2d(4, 4, 3, padding=1)  # noqa: E731
        norm = lambda: nn.BatchNorm2d(4)  # noqa: E731
        self.split, self.split_norm = conv(), norm()
        self.pre_norm, self.pre_conv = norm(), conv()
        self.borrowed, self.borrowed_norm = conv(), norm()
        self.levels, self.levels_norm = conv(), norm()
        self.batch, self.batch_norm = conv(), nn.BatchNorm2d(4, track_running_stats=False)
        self.shared = nn.ModuleList(ConvModule(4, 4, 3, padding=1, norm_cfg=dict(type='BN')) for _ in range(2))
        self.shared[1].conv = self.shared[0].conv
        self.unused, self.unused_norm = conv(), norm()

    def forward(self, x):
        y = self.split(x)
        y = self.split_norm(y) + y  # the conv's output is used twice
        y = self.pre_conv(self.pre_norm(y))
        y = self.borrowed_norm(self.borrowed(y)) + torch.conv2d(y, self.borrowed.weight, padding=1)
        y = sum(self.levels_norm(self.levels(level)) for level in (y, y * 2))  # one pair, two levels
        return self.shared[0](y) + self.shared[1](y) + self.batch_norm(self.batch(y))


def test_what_must_not_be_folded_is_listed():
    deployed = check(randomised(Traps()), torch.randn(2, 4, 9, 9), probe=torch.randn(2, 4, 8, 8))
    report = deployed.deploy_report
    assert set(report.norms_left) == {'split_norm', 'pre_norm', 'borrowed_norm', 'batch_norm', 'unused_norm'}
    assert report.norms_folded == 3 and report.convs_unshared == 1
    assert isinstance(deployed.levels_norm, nn.Identity)
    assert 'not reached' in report.norms_left['unused_norm']
    assert 'unused_norm' in str(report)


def test_children_that_hang_in_several_places_take_each_places_norm():
    blocks = nn.ModuleList(ConvModule(4, 4, 3, padding=1, norm_cfg=dict(type='BN')) for _ in range(3))
    blocks[2].conv = blocks[1].conv

    class Levels(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = blocks

        def forward(self, x):
            return [block(x) for block in self.blocks]

    net = Levels()
    share_kernels(net, {'blocks.1.conv': 'blocks.0.conv'})
    assert net.blocks[1].conv is net.blocks[2].conv and isinstance(net.blocks[1].conv, ChildConv2d)
    report = check(randomised(net), torch.randn(2, 4, 9, 9), probe=torch.randn(2, 4, 8, 8)).deploy_report
    assert report.convs_baked == 1 and report.convs_unshared == 1
    assert report.norms_folded == 5 and not report.norms_left  # a norm a block, and the gate of either copy


class AroundItsModules(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(x)) + self.conv.bias.norm()  # sees the folded bias


def test_deviation_is_an_error():
    with pytest.raises(DeployError, match='deviates'):
        deploy(randomised(AroundItsModules()))


def test_training_mode_is_deployed_as_it_evaluates():
    model = randomised(MODELS.build(NETS['r18'])).train()
    deployed = deploy(model)
    assert model.training and not deployed.training
    x = torch.randn(2, 3, 64, 64)
    assert_same(deployed(x), model.eval()(x))


def test_after_fuse_conv_bn():
    model = randomised(MODELS.build(NETS['r50']))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        fused = fuse_conv_bn(copy.deepcopy(model))
        assert_same(fused(x), expected)
    deployed = check(fused, x)
    assert_same(deployed(x), expected)
    assert not any(isinstance(m, _BatchNorm) for m in deployed.modules())


class Owner(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, x):
        return self.backbone(x)


@pytest.mark.parametrize('name', ['r18', 'mobilenet'])
@pytest.mark.parametrize('grad', [False, True])
def test_efficient_conv_bn_eval(name, grad):
    model = randomised(Owner(MODELS.build(NETS[name])))
    x = torch.randn(2, 3, 64, 64)
    with torch.set_grad_enabled(grad):
        expected = model(x)
        turn_on_efficient_conv_bn_eval(model, 'backbone')
        assert_same(model(x), expected)
    deployed = check(model, x)
    assert not any(isinstance(m, _BatchNorm) for m in deployed.modules())


def test_rivals_stay_and_are_listed():
    from mmkerneldna.layers import ODConv2d

    model = nn.Sequential(ODConv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    deployed = check(randomised(model), torch.randn(2, 4, 9, 9), probe=torch.randn(2, 4, 9, 9))
    assert '0' in deployed.deploy_report.others_left and 'ODConv2d' in deployed.deploy_report.norms_left['1']
    assert isinstance(deployed[3], nn.Identity) and isinstance(deployed[1], nn.BatchNorm2d)


def test_copy_is_final_for_gradients_and_format():
    deployed = deploy(randomised(MODELS.build(NETS['r18'])))
    assert not any(p.requires_grad for p in deployed.parameters())
    features = deployed(torch.randn(1, 3, 64, 64, requires_grad=True))
    assert not features[0].requires_grad
    assert features[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(gate='fused'), "'torch' or 'triton'"),
        (dict(gate='triton'), 'CUDA'),
        (dict(cuda_graph=True), 'CUDA'),
        (dict(compile='fast'), "'dynamic'"),
    ],
)
def test_impossible_arguments(arguments, message):
    with pytest.raises(DeployError, match=message):
        deploy(nn.Conv2d(3, 3, 1), **arguments)


def test_half_precision_without_it(monkeypatch):
    monkeypatch.setattr('mmkerneldna.deploy.deployment.onednn_computes', lambda dtype: False)
    with pytest.raises(DeployError, match='bfloat16'):
        deploy(nn.Conv2d(3, 3, 1), dtype=torch.bfloat16)


def test_half_precision():
    model = randomised(MODELS.build(NETS['r18']))
    try:
        deployed = deploy(model, dtype=torch.bfloat16)
    except DeployError as error:
        pytest.skip(str(error))
    x = torch.randn(2, 3, 64, 64)
    features = deployed(x)
    assert features[0].dtype == torch.bfloat16
    assert_same([f.float() for f in features], model(x), tolerance=0.05)


def test_input_on_another_device():
    deployed = deploy(randomised(MODELS.build(NETS['r18'])))
    with pytest.raises(ValueError, match='on meta; move the input'):
        deployed(torch.empty(1, 3, 64, 64, device='meta'))

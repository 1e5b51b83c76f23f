"""deploy(shared=True) against the original: the same features, each kernel once."""

import argparse
import io
from types import SimpleNamespace

import pytest
import torch
from helpers import assert_same, randomise
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmdet.models.backbones import ResNet
from test_deploy_models import small_model
from torch import nn

from mmkerneldna.backbones import KDNAMobileNetV2, KDNAResNet
from mmkerneldna.deploy import deploy
from mmkerneldna.deploy.bake import GatedConv
from mmkerneldna.deploy.packed import PackedConv2d
from mmkerneldna.deploy.packing import packed_weight_bytes
from mmkerneldna.deploy.probe import make_probe
from mmkerneldna.deploy.scaled_conv import ScaledConv2d
from mmkerneldna.errors import UsageError
from mmkerneldna.hooks import DeployHook
from mmkerneldna.launch.arguments import add_deploy_arguments, deploy_options
from mmkerneldna.layers import ChildConv2d
from mmkerneldna.sharing import share_kernels

HALF = {f'layer{s}.{child}': f'layer{s}.1.conv2' for s in (3, 4) for child in ('0.conv2', '1.conv1')}


def half_resnet18(channels=8, spatial_scale=False):
    """A ResNet-18 whose late stages have half of their kernels."""
    torch.manual_seed(0)
    net = share_kernels(ResNet(18, base_channels=channels), HALF, spatial_scale=spatial_scale)
    net.eval()
    return randomise(net)


@torch.no_grad()
def check(net, x, **options):
    expected = net(x)
    deployed = deploy(net, shared=True, **options)
    assert_same(deployed(x), expected)
    assert not any(isinstance(m, ChildConv2d) for m in deployed.modules())
    return deployed


def kernels(net):
    """Convolutions, and their kernels, each once."""
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    return convs, {id(conv.weight) for conv in convs}


def test_resnet18_with_half_the_parameters():
    deployed = deploy(half_resnet18(), shared=True)
    assert packed_weight_bytes(deployed) == 0  # the probe's are gone
    deployed = check(half_resnet18(), torch.randn(3, 3, 64, 96))
    report = deployed.deploy_report
    assert (report.convs_shared, report.convs_baked, report.not_shared, report.norms_left) == (4, 0, {}, {})
    assert '4 keep the kernel of another' in str(report)
    convs, unique = kernels(deployed)
    assert len(convs) == len(unique) + 4 == 20
    for stage in (deployed.layer3, deployed.layer4):
        parent = stage[1].conv2
        assert isinstance(parent, PackedConv2d)  # without factors: it does its residual sum and ReLU itself
        for child in (stage[0].conv2, stage[1].conv1):
            assert isinstance(child, GatedConv) and isinstance(child.conv, ScaledConv2d)
            assert child.conv.conv.weight is parent.weight and child.conv.conv.packed is parent.packed
            assert len(parent.packed.layouts()) == 1
    assert packed_weight_bytes(deployed) == pytest.approx(
        sum(m.weight.nbytes for m in {m.packed: m for m in convs}.values()), rel=0.5
    )


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer


def test_files_hold_a_kernel_once_and_load():
    net = half_resnet18()
    apart, once = deploy(net), deploy(net, shared=True)
    spared = 2 * (32**2 + 64**2) * 9  # two kernels a stage
    file = saved(once.state_dict())
    assert saved(apart.state_dict()).tell() - file.tell() == pytest.approx(4 * spared, rel=0.05)
    factors = 2 * 2 * (32 + 64) - 2 * (32 + 64)  # scale and shift of each child, where it had a bias
    assert apart.deploy_report.params_after - once.deploy_report.params_after == spared - factors
    file.seek(0)
    other, x = deploy(randomise(half_resnet18()), shared=True), torch.randn(1, 3, 64, 64)
    other.load_state_dict(torch.load(file))
    assert_same(other(x), once(x))


class Family(nn.Module):
    """Three convolutions of one shape, one behind the other, the last one the parent; what follows each is its own."""

    def __init__(self, norms, **options):
        super().__init__()
        self.first, self.second, self.parent = (nn.Conv2d(8, 8, stride=s, **options) for s in (2, 1, 1))
        self.norms = nn.ModuleList(norms)

    def forward(self, x):
        x = self.norms[0](self.first(x)).relu()
        x = self.norms[1](self.second(x)) + x[..., : x.shape[2], : x.shape[3]]
        return self.norms[2](self.parent(x.relu()))


def family(norms=None, spatial_scale=(False, False), residual=(0, 0), **options):
    torch.manual_seed(0)
    net = Family(norms or [nn.BatchNorm2d(8) for _ in range(3)], **options)
    for name, spatial, rank in zip(('first', 'second'), spatial_scale, residual):
        child = ChildConv2d.from_conv(getattr(net, name), net.parent, spatial_scale=spatial, residual_rank=rank)
        setattr(net, name, child)
    return randomise(net.eval())


@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(
    kernel=st.sampled_from([1, 3]),
    groups=st.sampled_from([1, 2, 8]),
    bias=st.booleans(),
    dilation=st.integers(1, 2),
    mode=st.sampled_from(['zeros', 'reflect']),
    batch=st.integers(1, 3),
    side=st.integers(8, 13),
    norm=st.sampled_from([nn.BatchNorm2d, nn.Identity, lambda c: nn.GroupNorm(2, c)]),
)
def test_any_family(kernel, groups, bias, dilation, mode, batch, side, norm):
    options = dict(kernel_size=kernel, groups=groups, bias=bias, dilation=dilation, padding_mode=mode)
    net = family([norm(8) for _ in range(3)], padding=kernel // 2 * dilation, **options)
    deployed = check(net, torch.randn(batch, 8, side + 3, side), probe=torch.randn(2, 8, 12, 11))
    convs, unique = kernels(deployed)
    assert len(convs) == 3 and len(unique) == 1 and deployed.deploy_report.convs_shared == 2
    assert isinstance(deployed.parent, PackedConv2d)


@pytest.mark.parametrize(
    'options, shared, reason',
    [
        (dict(spatial_scale=(True, False)), 1, 'spatial scale'),
        (dict(residual=(2, 0)), 1, 'residual'),
        (dict(spatial_scale=(True, True)), 0, 'spatial scale'),
    ],
)
def test_children_that_change_the_kernel_get_their_own(options, shared, reason):
    net = family(kernel_size=3, padding=1, **options)
    deployed = check(net, torch.randn(2, 8, 12, 12), probe=torch.randn(2, 8, 12, 11))
    report = deployed.deploy_report
    assert report.convs_shared == shared and report.convs_baked == 2 - shared == len(report.not_shared)
    assert reason in report.not_shared['first'] and 'has a kernel of its own: first' in str(report)
    assert len(kernels(deployed)[1]) == 3 - shared


def test_a_child_without_its_parent_gets_a_kernel_of_its_own():
    net = family(kernel_size=3, padding=1)
    net.parent = nn.Conv2d(8, 8, 3, padding=1)
    deployed = check(net, torch.randn(2, 8, 12, 12), probe=torch.randn(2, 8, 12, 11))
    assert deployed.deploy_report.convs_shared == 2  # the two children share what is left
    net.second = nn.Conv2d(8, 8, 3, padding=1)
    deployed = check(net, torch.randn(2, 8, 12, 12), probe=torch.randn(2, 8, 12, 11))
    assert 'no other plain convolution' in deployed.deploy_report.not_shared['first']


@pytest.mark.parametrize('gamma, plain', [(1e-2, True), (1e-9, False), (0.0, False)])
def test_filters_that_the_parents_norm_switches_off(gamma, plain):
    """The children still need them: the kernel must not be multiplied by (almost) nothing."""
    net = family(kernel_size=3, padding=1)
    nn.init.constant_(net.norms[2].weight[:2], gamma)
    for norm in net.norms[:2]:
        nn.init.constant_(norm.weight[:4], 0.0 if gamma == 0 else 1.0)
    deployed = check(net, torch.randn(2, 8, 12, 12), probe=torch.randn(2, 8, 12, 11))
    assert isinstance(deployed.parent, PackedConv2d) == plain and len(kernels(deployed)[1]) == 1


class Levels(nn.Module):
    """Levels of a pyramid with the same convolutions and norms of their own, as RetinaSepBN's head has them."""

    def __init__(self):
        super().__init__()
        first, second = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.levels = nn.ModuleList(
            nn.Sequential(first, nn.BatchNorm2d(8), nn.ReLU(), second, nn.BatchNorm2d(8)) for _ in range(3)
        )

    def forward(self, x):
        return [level(x) for level in self.levels]


def test_convolutions_in_several_places_share_too():
    net = randomise(share_kernels(Levels(), {'levels.0.0': 'levels.0.3'}, spatial_scale=False).eval())
    x = torch.randn(2, 8, 9, 9)
    deployed = check(net, x, probe=torch.randn(2, 8, 8, 8))
    convs, unique = kernels(deployed)
    assert len(convs) == 6 and len(unique) == 1 and deployed.deploy_report.norms_folded == 6 + 3  # and the gates


def test_kernels_that_others_hold_are_left_alone():
    net = family(kernel_size=3, padding=1)
    net.spare = nn.Module()
    net.spare.kernel = net.parent.weight
    before = net.parent.weight.detach().clone()
    deployed = check(net, torch.randn(2, 8, 12, 12), probe=torch.randn(2, 8, 12, 11))
    assert torch.equal(deployed.spare.kernel, before) and isinstance(deployed.parent, ScaledConv2d)


@pytest.mark.parametrize('net', [lambda: KDNAMobileNetV2(0.25, out_indices=(2, 5)), lambda: KDNAResNet(18, base_channels=8)])
def test_paper_plans(net):
    """MobileNetV2's children are 1x1 and share as they are, ResNet-18's have spatial scales and do not."""
    torch.manual_seed(0)
    net = net()
    net.eval()
    report = check(randomise(net), torch.randn(2, 3, 64, 64)).deploy_report
    children = sum(isinstance(m, ChildConv2d) for m in net.modules())
    pointwise = isinstance(net, KDNAMobileNetV2)
    assert (report.convs_shared, report.convs_baked) == ((children, 0) if pointwise else (0, children))
    assert len(report.not_shared) == report.convs_baked and children


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason='this CPU has no bf16 convolutions')
def test_bf16():
    net, x = half_resnet18(), torch.randn(2, 3, 64, 64)
    expected, once, apart = net(x), deploy(net, dtype=torch.bfloat16, shared=True), deploy(net, dtype=torch.bfloat16)
    assert len(kernels(once)[1]) == 16
    for want, one, other in zip(expected, once(x), apart(x)):
        off = [(y.float() - want).norm() / want.norm() for y in (one, other)]
        assert off[0] < 0.02 and off[0] < 1.5 * off[1]


def test_the_model_itself_is_left_as_it_is():
    net = half_resnet18()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    deploy(net, shared=True)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def whole(name):
    """A narrow detector or segmenter whose children have no spatial scales."""
    model = small_model(name)
    for child in model.modules():
        if isinstance(child, ChildConv2d):
            child.spatial_scale = None
    return model


@torch.no_grad()
def test_raw_outputs_of_a_whole_detector():
    model = whole('retina')
    probe = make_probe(model, torch.randn(1, 3, 96, 64))
    expected, deployed = probe(model), deploy(model, shared=True)
    assert_same(probe(deployed), expected)
    children = sum(isinstance(m, ChildConv2d) for m in model.modules())
    assert deployed.deploy_report.convs_shared == children > 6  # backbone and neck


def test_a_test_of_the_deployed_model_may_share():
    runner = SimpleNamespace(model=half_resnet18())
    DeployHook(shared=True).before_test(runner)
    assert runner.model.deploy_report.convs_shared == 4


@pytest.mark.parametrize('flags', [['--deploy', '--shared'], ['--shared']])
def test_flag_of_the_tools(flags):
    parser = argparse.ArgumentParser()
    add_deploy_arguments(parser, 'test')
    args = parser.parse_args(flags)
    if '--deploy' in flags:
        assert deploy_options(args) == dict(compile=False, cuda_graph=False, backend='torch', shared=True)
    else:
        with pytest.raises(UsageError, match='--shared is an option of the deployed model: add --deploy'):
            deploy_options(args)

"""Activations and residual sums done by packed convolutions: the same features, and which steps went."""

import copy

import pytest
import torch
from helpers import assert_same, randomise
from mmcv.cnn import ConvModule
from mmengine.registry import MODELS
from torch import nn

from mmkerneldna.deploy import deploy
from mmkerneldna.deploy.deployment import lean_copy
from mmkerneldna.deploy.fuse import fuse_steps
from mmkerneldna.deploy.packed import RELU, Activation, PackedConv2d
from mmkerneldna.deploy.packing import pack_layers
from mmkerneldna.torch_internals import onednn_computes

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason='needs oneDNN')

R18 = dict(depth=18, base_channels=8)
R50 = dict(depth=50, base_channels=8)
# a stem: 1; a basic block: 1 ReLU, sum and ReLU; a bottleneck: 2 ReLUs, sum and ReLU. `b` blocks: 1 + 3 b, 1 + 4 b.
NETS = {
    'basic blocks': (dict(type='KDNAResNet', sharing=None, **R18), 1 + 3 * 10),
    'bottlenecks': (dict(type='KDNAResNet', sharing=None, **R50), 1 + 4 * 17),
    'KernelDNA, basic': (dict(type='KDNAResNet', **R18), 1 + 3 * 10),
    'KernelDNA, bottlenecks': (dict(type='KDNAResNet', **R50), 1 + 4 * 17),
    'checkpointed': (dict(type='KDNAResNet', with_cp=True, **R18), 1 + 3 * 10),
    "upstream's, deep stem": (dict(type='mmdet.ResNetV1d', stem_channels=8, **R18), 3 + 3 * 8),
    'groups': (dict(type='mmdet.ResNeXt', depth=50, groups=4, base_width=4), 1 + 4 * 16),
    # stem, first block without expansion (1), 16 expanding ones (2), last conv; sums: 10 blocks keep stride and width
    'ReLU6': (dict(type='mmseg.MobileNetV2', widen_factor=0.5, out_indices=(1, 2, 4, 6)), 1 + 1 + 16 * 2 + 10),
}


@torch.no_grad()
@pytest.mark.parametrize('name', NETS)
def test_the_same_features_with_fewer_steps(name):
    cfg, steps = NETS[name]
    model = randomise(MODELS.build(cfg))
    deployed = deploy(model)
    assert deployed.deploy_report.steps_fused == steps
    model.eval()
    for size in ((64, 64), (96, 160)):
        x = torch.randn(2, 3, *size)
        assert_same(deployed(x), model(x))
        assert_same(copy.deepcopy(deployed)(x), model(x))


@torch.no_grad()
@pytest.mark.parametrize('name', ['KernelDNA, basic', 'KernelDNA, bottlenecks', 'groups', 'ReLU6'])
@pytest.mark.skipif(not onednn_computes(torch.bfloat16), reason='this CPU has no bf16 convolutions')
def test_half_precision(name):
    model = randomise(MODELS.build(NETS[name][0]))
    deployed, x = deploy(model, dtype=torch.bfloat16), torch.randn(2, 3, 64, 96)
    plain = lean_copy(model).to(torch.bfloat16)
    model.eval()
    for features, unfused, expected in zip(deployed(x.bfloat16()), plain(x.bfloat16()), model(x)):
        assert features.dtype == torch.bfloat16
        error, error_unfused = ((f.float() - expected).square().mean().sqrt() for f in (features, unfused))
        assert error <= 1.2 * error_unfused + 1e-6, 'fusing rounds less often'


@torch.no_grad()
@pytest.mark.parametrize(
    'layer',
    [
        nn.ReLU(),
        nn.ReLU6(),
        nn.Hardtanh(-0.5, 0.3),
        nn.LeakyReLU(0.1),
        nn.SiLU(),
        nn.Hardswish(),
        nn.GELU(),
        nn.GELU('tanh'),
        nn.Sigmoid(),
    ],
)
@pytest.mark.parametrize('groups', [1, 4])
def test_activations(layer, groups):
    net = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, groups=groups), nn.Identity(), layer)
    expected, x = net(torch.ones(2, 4, 5, 7)), torch.ones(2, 4, 5, 7)
    pack_layers(net.requires_grad_(False))
    assert fuse_steps(net, lambda: net(torch.randn(2, 4, 9, 9))) == 1
    assert_same(net(x), expected)


class Block(nn.Module):
    """A residual block in several writings."""

    def __init__(self, writing):
        super().__init__()
        self.conv1, self.conv2, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True)
        self.short, self.table, self.writing = nn.Conv2d(4, 4, 1), nn.Parameter(torch.ones(4, 1, 1)), writing

    def forward(self, x):
        return getattr(self, self.writing)(x)

    def in_place(self, x):
        y = self.conv2(torch.relu(self.conv1(x)))
        y += x
        return self.relu(y)

    def projected(self, x):  # both summands are convolutions; one is called later than written
        return self.relu(self.conv2(self.conv1(x)) + self.short(x))

    def method(self, x):
        return x.add(self.conv1(x)).relu_()

    def no_activation(self, x):
        return x + self.conv1(x)

    def read_twice(self, x):
        y = self.conv1(x)
        return self.relu(y) + y.mean()

    def changed_in_between(self, x):  # conv2 would read what relu_ has changed
        y = self.conv1(x)
        z = self.conv2(y)
        return torch.relu_(y) + z

    def broadcast(self, x):
        return self.relu(self.conv1(x) + x.mean((2, 3), keepdim=True))

    def scaled(self, x):
        return torch.add(self.conv1(x), x, alpha=2)

    def own_parameter(self, x):
        return self.relu(self.conv1(x)) * self.table

    def branches(self, x):
        return self.relu(self.conv1(x)) if x.mean() > 0 else self.conv1(x)


@torch.no_grad()
@pytest.mark.parametrize(
    'writing, steps',
    [
        ('in_place', 3),
        ('projected', 2),
        ('method', 2),
        ('no_activation', 1),
        ('read_twice', 0),
        ('changed_in_between', 0),
        ('scaled', 0),
        ('own_parameter', 0),
        ('branches', 0),
        ('broadcast', 2),
    ],
)
def test_writings(writing, steps):
    net = nn.Sequential(Block(writing)).requires_grad_(False)
    inputs = [torch.randn(2, 4, size, 7) for size in (9, 6)]
    expected = [net(x.clone()) for x in inputs]
    pack_layers(net)
    assert fuse_steps(net, lambda: net(inputs[0].clone())) == steps
    for x, target in zip(inputs, expected):
        assert_same(net(x.clone()), target)


@torch.no_grad()
def test_what_is_called_with_more_than_an_image_stays():
    module = ConvModule(4, 4, 3, padding=1)
    pack_layers(module.requires_grad_(False))
    x = torch.randn(1, 4, 6, 6)
    assert fuse_steps(module, lambda: (module(x), module(x, activate=False))) == 0
    assert fuse_steps(module, lambda: module(x)) == 1
    assert 'forward' in vars(module)


@torch.no_grad()
@pytest.mark.parametrize('activation', [Activation(), RELU, Activation('hardtanh', (0.0, 6.0))])
@pytest.mark.parametrize(
    'options', [{}, dict(groups=2), dict(stride=2, dilation=2), dict(padding='same'), dict(padding_mode='reflect')]
)
def test_a_call_that_cannot_be_fused_is_the_same(options, activation):
    conv = nn.Conv2d(4, 4, 3, **{'padding': 1, **options})
    packed, x = PackedConv2d(conv.requires_grad_(False)), torch.randn(2, 4, 9, 7)
    y = conv(x)
    for other in (torch.randn_like(y), torch.randn(2, 4, 1, 1), torch.randn_like(y).double()):
        torch.testing.assert_close(packed(x, other, tuple(activation)), activation.plainly(y + other), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(packed(x, activation=activation), activation.plainly(y), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_tracing_sees_plain_steps():
    deployed, x = deploy(randomise(MODELS.build(NETS['KernelDNA, basic'][0]))), torch.randn(1, 3, 64, 64)
    traced = torch.jit.trace(deployed, x, check_trace=False)
    assert 'mkldnn' not in str(traced.inlined_graph)
    assert_same(list(traced(x)), deployed(x))

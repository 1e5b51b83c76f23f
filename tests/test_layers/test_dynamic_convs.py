"""What every dynamic convolution promises, whatever its paper: one test over all of them."""

import copy
import io

import pytest
import torch
from conv_cases import randomise
from mmcv.cnn import ConvModule, fuse_conv_bn
from mmcv.cnn.bricks import build_conv_layer
from mmdet.models.backbones import ResNet
from mmengine.registry import MODELS
from torch import nn

# One line per layer: its config, and the group counts it takes on 16 channels.
DYNAMIC_CONVS = [
    (dict(type='CondConv2d'), (1, 4, 16)),
    (dict(type='DyConv2d'), (1, 4, 16)),
    (dict(type='DCDConv2d'), (1, 16)),
    (dict(type='ODConv2d'), (1, 4, 16)),
    (dict(type='ODConv2d', num_experts=1), (1, 4, 16)),
    (dict(type='SEConv2d'), (1, 4, 16)),
    (dict(type='KWConv2d'), (1, 4, 16)),
    (dict(type='FDConv2d'), (1, 4, 16)),
    (dict(type='MoEConv2d'), (1, 4, 16)),
]
CASES = [
    pytest.param(dict(cfg, groups=groups), id=f'{"-".join(map(str, cfg.values()))}-g{groups}')
    for cfg, all_groups in DYNAMIC_CONVS
    for groups in all_groups
]
KINDS = [pytest.param(cfg, id='-'.join(map(str, cfg.values()))) for cfg, _ in DYNAMIC_CONVS]


def build(cfg, in_channels=16, out_channels=16, kernel_size=3, **geometry):
    layer = build_conv_layer(cfg, in_channels, out_channels, kernel_size, **{'padding': kernel_size // 2, **geometry})
    for module in layer.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return layer


def has_kaiming_std(layer):
    """Whether the kernels have the deviation that mmengine's default init gives a convolution of this shape.

    True for layers that keep their kernels elsewhere (a warehouse, a spectrum): those have tests of their own.
    """
    weight = getattr(layer, 'weight', None)
    if weight is None or tuple(weight.shape[-2:]) != layer.kernel_size:
        return True
    fan_out = layer.out_channels * layer.kernel_size[0] * layer.kernel_size[1]
    return weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


def grads(layer, x):
    layer.zero_grad()
    y = layer(x)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return y.detach(), {name: p.grad for name, p in layer.named_parameters()}


@pytest.mark.parametrize('cfg', CASES)
@pytest.mark.parametrize('kernel_size, stride, dilation, bias', [(1, 1, 1, True), (3, 2, 1, False), (3, 1, 2, True)])
def test_shapes_are_those_of_conv2d(cfg, kernel_size, stride, dilation, bias):
    geometry = dict(stride=stride, dilation=dilation, padding=1, bias=bias)
    layer = build(cfg, kernel_size=kernel_size, **geometry)
    static = nn.Conv2d(16, 16, kernel_size, groups=cfg['groups'], **geometry)
    for batch in (0, 1, 3):
        x = torch.randn(batch, 16, 11, 9)
        assert layer(x).shape == static(x).shape
    for name in (
        'in_channels',
        'out_channels',
        'kernel_size',
        'stride',
        'padding',
        'dilation',
        'groups',
        'transposed',
        'output_padding',
        'padding_mode',
    ):
        assert getattr(layer, name) == getattr(static, name), name
    assert (layer.bias is not None) == bias


@pytest.mark.parametrize('cfg', CASES)
def test_sample_by_sample_is_the_batch(cfg):
    layer, x = build(cfg, bias=False).double().eval(), torch.randn(4, 16, 8, 8).double()
    randomise(layer)  # some start as a static convolution
    y = layer(x)
    torch.testing.assert_close(torch.cat([layer(sample) for sample in x.split(1)]), y)
    # and it is dynamic: the output of a sum is not the sum of the outputs
    assert not torch.allclose(layer(x[:2] + x[2:]), y[:2] + y[2:], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('cfg', CASES)
@pytest.mark.parametrize('size', [8, 1])
def test_trains_at_a_batch_of_one(cfg, size):
    layer = build(cfg).train()
    y, gradients = grads(layer, torch.randn(1, 16, size, size))
    assert torch.isfinite(y).all()
    for name, gradient in gradients.items():
        assert gradient is not None and torch.isfinite(gradient).all(), name
    attention = [gradient for name, gradient in gradients.items() if name not in ('weight', 'bias')]
    assert any(gradient.any() for gradient in attention)


@pytest.mark.parametrize('cfg', CASES)
@pytest.mark.parametrize('batch', [1, 3])
def test_autocast(cfg, batch):
    layer, x = build(cfg), torch.randn(batch, 16, 8, 8)
    expected = copy.deepcopy(layer)(x)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        y = layer(x)
    torch.testing.assert_close(y.float(), expected, rtol=0.1, atol=0.1)
    y.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters() if p.grad is not None)


@pytest.mark.parametrize('cfg', CASES)
@pytest.mark.parametrize('batch', [1, 3])
def test_channels_last(cfg, batch):
    layer, x = build(cfg).eval(), torch.randn(batch, 16, 8, 8)
    expected = layer(x)
    y = layer(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer.to(memory_format=torch.channels_last)(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('cfg', CASES)
def test_deepcopy_is_independent(cfg):
    layer, x = build(cfg).eval(), torch.randn(2, 16, 8, 8)
    twin, expected = copy.deepcopy(layer), layer(x)
    assert torch.equal(twin(x), expected)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize('cfg', CASES)
def test_state_dict_is_strict_both_ways(cfg):
    layer, other, x = build(cfg).eval(), build(cfg).eval(), torch.randn(2, 16, 8, 8)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
    assert torch.equal(other(x), layer(x))
    state = layer.state_dict()
    missing = state.popitem()[0]
    with pytest.raises(RuntimeError, match=missing):
        other.load_state_dict(state, strict=True)


@pytest.mark.parametrize('cfg', CASES)
def test_fuse_conv_bn_keeps_the_output(cfg):
    net = nn.Sequential(build(cfg, bias=False), nn.BatchNorm2d(16)).eval()
    nn.init.uniform_(net[1].weight, 0.5, 2)
    nn.init.normal_(net[1].bias)
    nn.init.normal_(net[1].running_mean)
    nn.init.uniform_(net[1].running_var, 0.5, 2)
    x = torch.randn(2, 16, 8, 8)
    expected = net(x)
    torch.testing.assert_close(fuse_conv_bn(net)(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('cfg', KINDS)
def test_conv_cfg_of_a_resnet(cfg):
    """Every conv of the net, the stem of three channels included, and mmengine's init leaves no kernel behind."""
    torch.manual_seed(0)
    net = ResNet(depth=18, base_channels=16, conv_cfg=cfg, norm_eval=False)
    kind = MODELS.get(cfg['type'])
    assert sum(isinstance(m, kind) for m in net.modules()) == 20
    net.init_weights()
    assert all(has_kaiming_std(m) for m in net.modules() if isinstance(m, kind))
    net.train()
    outputs = net(torch.randn(2, 3, 64, 64))
    assert all(torch.isfinite(y).all() and y.std() > 0 for y in outputs)
    outputs[-1].sum().backward()


@pytest.mark.parametrize('cfg', KINDS)
def test_conv_module_keeps_the_init(cfg):
    module = ConvModule(64, 64, 3, conv_cfg=cfg, norm_cfg=dict(type='BN'))
    assert has_kaiming_std(module.conv)
    assert module(torch.randn(1, 64, 8, 8)).shape == (1, 64, 6, 6)


@pytest.mark.parametrize('cfg', [p for p in KINDS if hasattr(build(*p.values), 'temperature')])
def test_temperature_can_be_set(cfg):
    layer, x = build(cfg).eval(), torch.randn(1, 16, 8, 8)
    assert isinstance(layer.temperature, float)
    before = layer(x)
    layer.temperature = 0.5
    assert not torch.allclose(layer(x), before, atol=1e-4)


def test_experts_of_a_channels_last_net_lie_channels_last():
    layer = build(dict(type='ODConv2d', num_experts=2)).to(memory_format=torch.channels_last)
    assert layer.weight.shape == (2, 16, 16, 3, 3)
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in layer.weight)


@pytest.mark.parametrize(
    'kind, options, message',
    [
        ('CondConv2d', dict(num_experts=0), 'num_experts=0 must be a whole number of at least 1'),
        ('DyConv2d', dict(num_experts=-1), 'num_experts=-1'),
        ('ODConv2d', dict(num_experts=2.5), 'num_experts=2.5'),
        ('DyConv2d', dict(reduction=17), 'reduction=17 must lie between 1 and 16'),
        ('DyConv2d', dict(reduction=0), 'reduction=0'),
        ('ODConv2d', dict(reduction=17), 'reduction=17 must lie between 1 and 16'),
        ('ODConv2d', dict(min_channels=0), 'min_channels=0'),
        ('ODConv2d', dict(temperature=0), 'temperature=0 must be positive'),
        ('SEConv2d', dict(reduction=17), 'reduction=17'),
        ('DCDConv2d', dict(groups=4), 'groups=4'),
        ('ODConv2d', dict(groups=3), 'divisible by groups'),
    ],
)
def test_refuses(kind, options, message):
    with pytest.raises(ValueError, match=message):
        build(dict(type=kind), **options)

"""A naive forward that reads the released DCD key layout from the state dict, against our converted nets."""

import math

import pytest
import torch
import torch.nn.functional as F
from mmdet.models import MobileNetV2, ResNet
from test_odconv_checkpoint import MOBILE_STAGES, Released

from mmkerneldna.checkpoints import convert_dcd
from mmkerneldna.layers import DCDConv2d, swap_convs
from mmkerneldna.layers.swap import match_convs
from mmkerneldna.modules import replace


def gate(x):
    return (x + 3).clamp(0, 6) / 3


class ReleasedDCD(Released):
    """One dynamic layer, by the names and widths of its net."""

    def get(self, key, *shape, low=None, high=None):
        """Wide norms: a layer multiplies its input with itself, which soon leaves the numbers."""
        if key.endswith('running_var'):
            low, high = 20.0, 80.0
        return super().get(key, *shape, low=low, high=high)

    def dynamic(self, x, name, out, kernel, stride=1):
        """A ResNet's; basic blocks pool to 2x2."""
        pool = self.kernel_num
        latent = math.isqrt(x.shape[1] * pool**2)
        return self.fused(x, name, out, kernel, stride, pool, latent, 16, 'q', 'p')

    def fused(self, x, name, out, kernel, stride, pool, latent, reduction, q, p):
        features = x.shape[1] * pool**2
        hidden = max(max(features, latent**2) // reduction, 4)
        y = F.adaptive_avg_pool2d(x, pool).flatten(1) @ self.linear(f'{name}.fc.0', hidden, features).T
        y = y * gate(y @ self.linear(f'{name}.fc.1.fc.0', hidden, hidden).T)
        phi = (y @ self.linear(f'{name}.fc_phi', latent**2, hidden).T).view(-1, latent, latent)
        scale = gate(y @ self.linear(f'{name}.fc_scale', out, hidden).T)
        z = self.bn(self.pointwise(x, f'{name}.{q}', latent, stride), f'{name}.bn1')
        mixed = torch.stack([(m @ s.flatten(1)).view(s.shape) for m, s in zip(phi, z)])
        z = self.bn(mixed, f'{name}.bn2') + z
        static = self.static(x, f'{name}.conv', out, kernel, stride)
        return self.pointwise(z, f'{name}.{p}', out) + scale[:, :, None, None] * static

    def linear(self, name, out, ins):
        if f'{name}.weight' not in self.state:
            self.state[f'{name}.weight'] = torch.randn(out, ins) / ins**0.5 / (4 if name.endswith('fc_phi') else 1)
        return self.state[f'{name}.weight']

    def pointwise(self, x, name, out, stride=1):
        return self.static(x, name, out, 1, stride)

    def mobile(self, x):
        """Blocks as flat sequences: convolution, norm, activation, convolution, ..."""
        x = self.bn(self.static(x, 'features.0.0', 32, 3, 2), 'features.0.1').clamp(0, 6)
        position = 0
        for expand, out, count, stride in MOBILE_STAGES:
            for j in range(count):
                position += 1
                name, y, i = f'features.{position}.conv', x, 0
                if expand > 1:
                    y = self.bn(self.point_layer(y, f'{name}.0', x.shape[1] * expand), f'{name}.1').clamp(0, 6)
                    i = 3
                width = y.shape[1]
                weight = self.get(f'{name}.{i}.weight', width, 1, 3, 3)
                y = F.conv2d(y, weight, None, stride if j == 0 else 1, 1, 1, width)
                y = self.bn(y, f'{name}.{i + 1}').clamp(0, 6)
                y = self.point_layer(y, f'{name}.{i + 3}', out) if expand > 1 else self.pointwise(y, f'{name}.{i + 3}', out)
                y = self.bn(y, f'{name}.{i + 4}')
                x = x + y if y.shape == x.shape and j else y
        x = self.bn(self.pointwise(x, 'conv.0', 1280), 'conv.1').clamp(0, 6)
        self.get('classifier.0.fc_phi.weight', 9, 4)
        return [x]

    def point_layer(self, x, name, out):
        return self.fused(x, name, out, 1, 1, *mobile_widths(x.shape[1], out), 8, 'conv_q', 'conv_p')


def mobile_widths(ins, out):
    """Side of the pooled map and latent channels of the released MobileNetV2."""
    pool, divisor = (2, 8) if ins < out else (1, 2)
    features = ins * pool**2
    while min(features // divisor, out // divisor) ** 2 > 2 * features:
        divisor *= 2
    return pool, max(min(features // divisor, out // divisor), 4)


def mobile_net():
    """Every layer is given its released widths."""
    net = MobileNetV2(out_indices=(7,))
    for path in match_convs(net, DCDConv2d, ['layer[2-7].*.expand_conv.*', 'layer[2-7].*.linear_conv.*'], ()):
        conv = net.get_submodule(path)
        pool, latent = mobile_widths(conv.in_channels, conv.out_channels)
        options = dict(pool_size=pool, latent_channels=latent, reduction=8)
        replace(net, conv, DCDConv2d(conv.in_channels, conv.out_channels, 1, bias=False, **options))
    return net


NETS = {
    'resnet18': (
        2,
        lambda net, x: net.resnet(x, net.basic, (2, 2, 2, 2), 1),
        lambda: swap_convs(ResNet(18), dict(type='DCDConv2d', pool_size=2)),
    ),
    'resnet50': (
        1,
        lambda net, x: net.resnet(x, net.bottleneck, (3, 4, 6, 3), 4),
        lambda: swap_convs(ResNet(50), dict(type='DCDConv2d')),
    ),
    'mobilenet_v2': (1, lambda net, x: net.mobile(x), mobile_net),
}


@pytest.fixture
def doubles():
    """Deep nets of random weights multiply rounding errors."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize('name', NETS)
@torch.no_grad()
def test_features_agree_with_the_released_layout(name, doubles):
    pool, reference, build = NETS[name]
    released, x = ReleasedDCD(pool), torch.randn(2, 3, 40, 40)
    expected = reference(released, x)
    net = build()
    net.load_state_dict(
        convert_dcd(dict(state_dict={f'module.{key}': value for key, value in released.state.items()})), strict=True
    )
    net.eval()
    for ours, theirs in zip(net(x), expected, strict=True):
        assert theirs.std() > 1e-3, 'the reference died out, so the comparison would say nothing'
        torch.testing.assert_close(ours / theirs.abs().max(), theirs / theirs.abs().max(), rtol=0, atol=1e-8)


def test_refuses_what_is_no_released_net():
    with pytest.raises(ValueError, match='no layer has an fc_phi'):
        convert_dcd({'conv1.weight': torch.zeros(1), 'classifier.0.fc_phi.weight': torch.zeros(1)})
    with pytest.raises(ValueError, match='expected the layers of resnet_dcd.*got trunk'):
        convert_dcd({'trunk.fc_phi.weight': torch.zeros(1)})
    state = {f'{name}.weight': torch.zeros(1) for name in ('conv1', 'bn1', 'layer4.0.conv1.conv', 'layer4.0.conv1.fc_phi')}
    assert set(convert_dcd(state)) == {
        'conv1.weight',
        'bn1.weight',
        'layer4.0.conv1.weight',
        'layer4.0.conv1.fusion.phi_fc.weight',
    }
    with pytest.raises(ValueError, match='2 keys belong to no layer.*layer5.0.weight, layer4.0.conv1.surprise'):
        convert_dcd({**state, 'layer5.0.weight': torch.zeros(1), 'layer4.0.conv1.surprise': torch.zeros(1)})

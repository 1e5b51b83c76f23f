"""A naive forward that reads the released FDConv key layout from the state dict, against our converted nets."""

import math

import pytest
import torch
import torch.nn.functional as F
from mmdet.models import ResNet
from test_odconv_checkpoint import Released

from mmkerneldna.checkpoints import convert_fdconv, fdconv, fdconv_setting
from mmkerneldna.layers import FDConv2d, swap_convs

GROUPS = 64
INCLUDE = ['layer*.conv*']


class ReleasedFDConv(Released):
    """Residual branches of dynamic layers, each sample by itself; stem and shortcuts are static."""

    def dense(self, x, name, out):
        """A 1x1 convolution with bias on a pooled map."""
        weight = self.get(f'{name}.weight', out, len(x), 1, 1)
        return weight.flatten(1) @ x + self.get(f'{name}.bias', out)

    def spectrum(self, name, out, ins, kernel):
        key = f'{name}.dft_weight'
        if key not in self.state:
            matrix = torch.randn(out * kernel, ins * kernel) * (2 / (ins * kernel**2)) ** 0.5
            self.state[key] = torch.view_as_real(torch.fft.rfft2(matrix) / (min(out, ins) // 2))[None].clone()
        return torch.view_as_complex(self.state[key][0])

    def dynamic(self, x, name, out, kernel, stride=1):
        samples = [self.one(sample[None], name, out, kernel, stride) for sample in x]
        return torch.cat(samples)

    def one(self, x, name, out, kernel, stride):
        ins, pooled = x.shape[1], x.mean((2, 3), keepdim=True)
        ksm = f'{name}.KSM_Global'
        hidden = self.bn(self.static(pooled, f'{ksm}.fc', max(ins // 16, 16), 1), f'{ksm}.bn').flatten()
        hidden = self.get(f'{ksm}.relu.scale', 1, low=0.5, high=1.0) * hidden.relu() ** 2 + self.get(f'{ksm}.relu.bias', 1)
        channel = 2 * self.dense(hidden, f'{ksm}.channel_fc', ins).sigmoid()
        filters = 2 * self.dense(hidden, f'{ksm}.filter_fc', out).sigmoid()
        spatial = 2 * self.dense(hidden, f'{ksm}.spatial_fc', kernel**2).sigmoid() if kernel > 1 else torch.ones(1)
        share = 2 * self.dense(hidden, f'{ksm}.kernel_fc', GROUPS).sigmoid() / GROUPS
        weight = self.assemble(name, out, ins, kernel, share) * self.local(pooled, name, out, kernel)
        weight = weight * channel.view(1, -1, 1, 1) * filters.view(-1, 1, 1, 1) * spatial.view(1, 1, kernel, kernel)
        return F.conv2d(self.bands(x, name) if kernel > 1 else x, weight, None, stride, kernel // 2)

    def assemble(self, name, out, ins, kernel, share):
        """The sum of the groups' kernels, from the stored numbers times min(C) // 2 times the number of groups."""
        spectrum = self.spectrum(name, out, ins, kernel)
        rows, cols = out * kernel, ins * kernel
        axes = torch.fft.fftfreq(rows, dtype=torch.float32), torch.fft.rfftfreq(cols, dtype=torch.float32)
        grid = torch.stack(torch.meshgrid(*axes, indexing='ij'), -1)
        order = torch.sort(grid.norm(dim=-1).flatten(), stable=True)[1].view(GROUPS, -1)
        scaled = torch.zeros(spectrum.numel(), dtype=spectrum.dtype)
        for places, factor in zip(order, share):
            scaled[places] = spectrum.flatten()[places] * (min(out, ins) // 2 * GROUPS) * factor
        matrix = torch.fft.irfft2(scaled.view_as(spectrum), s=(rows, cols))
        return matrix.view(out, kernel, ins, kernel).transpose(1, 2)

    def local(self, pooled, name, out, kernel):
        ins = pooled.shape[1]
        weight, bias = self.get(f'{name}.KSM_Local.norm.weight', ins), self.get(f'{name}.KSM_Local.norm.bias', ins)
        x = F.layer_norm(pooled.flatten(1), (ins,), weight, bias)[:, None]
        size = round(math.log2(ins) / 2 + 0.5) // 2 * 2 + 1
        logits = F.conv1d(x, self.get(f'{name}.KSM_Local.conv.weight', out * kernel**2, 1, size), padding=size // 2)
        return 2 * logits[0].view(out, kernel, kernel, ins).permute(0, 3, 1, 2).sigmoid()

    def bands(self, x, name):
        height, width = x.shape[-2:]
        corner = torch.maximum(torch.fft.fftfreq(64).abs()[:, None], torch.fft.rfftfreq(64)[None])
        total, rest = 0, x
        for i, k in enumerate((2, 4, 8)):
            mask = F.interpolate((corner < 0.5 / k + 1e-8).float()[None, None], (height, width // 2 + 1), mode='nearest')
            low = torch.fft.irfft2(torch.fft.rfft2(x, norm='ortho') * mask, s=(height, width), norm='ortho')
            conv = f'{name}.FBM.freq_weight_conv_list.{i}'
            bias = self.get(f'{conv}.bias', 1)
            total = total + 2 * (self.static(x, conv, 1, 3) + bias.view(1, 1, 1, 1)).sigmoid() * (rest - low)
            rest = low
        return total + rest


BLOCKS = {18: ('basic', (2, 2), 1), 50: ('bottleneck', (3,), 4)}  # the first stages: the naive forward is slow


def release(depth, x):
    net = ReleasedFDConv(GROUPS)
    block, counts, expansion = BLOCKS[depth]
    features = net.resnet(x, getattr(net, block), counts, expansion)
    net.state.pop('fc.weight'), net.state.pop('fc.bias')  # a detector's backbone has none
    return net, features


@pytest.fixture
def doubles():
    """Deep nets of random weights multiply rounding errors."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize('depth', BLOCKS)
@torch.no_grad()
def test_features_agree_with_the_released_layout(depth, doubles):
    x = torch.randn(1, 3, 72, 88)
    released, expected = release(depth, x)
    checkpoint = {f'backbone.{key}': value for key, value in released.state.items()}
    conv = fdconv_setting(checkpoint)
    assert conv == dict(type='FDConv2d', num_experts=64, released=True)
    stages = len(expected)
    net = ResNet(depth, num_stages=stages, strides=(1, 2)[:stages], dilations=(1,) * stages, out_indices=range(stages))
    net = swap_convs(net, conv, INCLUDE)
    assert sum(isinstance(m, FDConv2d) for m in net.modules()) == {18: 8, 50: 9}[depth]
    net.load_state_dict(convert_fdconv(checkpoint), strict=True)
    net.eval()
    for ours, theirs in zip(net(x), expected, strict=True):
        assert theirs.std() > 1e-3, 'the reference died out, so the comparison would say nothing'
        torch.testing.assert_close(ours / theirs.abs().max(), theirs / theirs.abs().max(), rtol=0, atol=1e-7)


@pytest.fixture(scope='module')
def state():
    with torch.no_grad():
        return release(18, torch.randn(1, 3, 32, 32))[0].state


def test_what_is_left_out_of_a_spectrum_is_said(state, monkeypatch):
    logged = []
    monkeypatch.setattr(fdconv, 'print_log', lambda message, logger: logged.append(message))
    convert_fdconv(state)
    key = 'layer1.0.conv1.dft_weight'
    trained = state[key] + torch.randn_like(state[key])
    converted = convert_fdconv({**state, key: trained})
    exact, lossy = (float(message.split()[-4]) for message in logged)
    assert exact < 1e-6 < 1e-3 < lossy < 0.3
    # as a whole the stored spectrum is the kernel's
    matrix = torch.fft.irfft2(torch.view_as_complex(trained[0]) * 32, s=(192, 192))
    torch.testing.assert_close(converted['layer1.0.conv1.weight'], matrix.view(64, 3, 64, 3).transpose(1, 2))


def test_a_kernel_that_was_never_converted(state):
    """The authors' convert_param=False stores the kernel itself."""
    plain = convert_fdconv(state)
    names = [key for key in state if key.endswith('dft_weight')]
    stored = {key: value for key, value in state.items() if key not in names}
    stored.update({key.replace('dft_weight', 'weight'): plain[key.replace('dft_weight', 'weight')] for key in names})
    again = convert_fdconv(stored)
    assert again.keys() == plain.keys() and all(torch.equal(again[key], plain[key]) for key in plain)


def test_refuses_what_is_no_released_net(state):
    key = 'layer2.1.conv2'
    with pytest.raises(ValueError, match='not a checkpoint of FDConv: no layer has a KSM_Global'):
        convert_fdconv({'conv1.weight': torch.zeros(1)})
    with pytest.raises(ValueError, match=f'{key}: 1 entries that FDConv2d has no place for: KSM_Local.complex_weight'):
        convert_fdconv({**state, f'{key}.KSM_Local.complex_weight': torch.zeros(1)})
    with pytest.raises(ValueError, match=f'{key} of an FDConv checkpoint has no FBM.freq_weight_conv_list.2.weight'):
        convert_fdconv({k: v for k, v in state.items() if k != f'{key}.FBM.freq_weight_conv_list.2.weight'})
    with pytest.raises(ValueError, match=rf'{key}: dft_weight has the shape \(2, .*param_ratio=1'):
        convert_fdconv({**state, f'{key}.dft_weight': state[f'{key}.dft_weight'].repeat(2, 1, 1, 1)})
    with pytest.raises(ValueError, match=r'the layers have \[32, 64\] frequency groups'):
        convert_fdconv({**state, f'{key}.KSM_Global.kernel_fc.weight': torch.zeros(32, 16, 1, 1)})

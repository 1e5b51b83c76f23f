import math

import pytest
import torch
from conv_cases import assert_same_as, conv_cases, naive_conv, naive_norm
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmkerneldna.layers import FDConv2d
from mmkerneldna.layers.frequencies import CUTOFFS, frequency_groups, modulate_bands, scale_frequencies


def dft(rows, cols):
    """Matrices of the two-dimensional DFT, X = F x G."""

    def matrix(size):
        k = torch.arange(size, dtype=torch.double)
        return torch.exp(torch.complex(torch.zeros(1, dtype=torch.double), -2 * math.pi / size * k[:, None] * k[None]))

    return matrix(rows), matrix(cols)


def full_groups(rows, cols, group):
    """Group of every frequency of the whole spectrum: that of its mirror image in the right half."""
    whole = torch.empty(rows, cols, dtype=torch.long)
    for u in range(rows):
        for v in range(cols):
            whole[u, v] = group[u, v] if v <= cols // 2 else group[-u % rows, cols - v]
    return whole


def disjoint_kernels(weight, group, n):
    """The n kernels W_i, each the inverse DFT of one group, written out with complex DFT matrices."""
    out, ins, height, width = weight.shape
    matrix = weight.permute(0, 2, 1, 3).reshape(out * height, ins * width)
    rows, cols = matrix.shape
    left, right = dft(rows, cols)
    spectrum = left @ matrix.to(torch.complex128) @ right
    whole = full_groups(rows, cols, group)
    kernels = []
    for i in range(n):
        kernel = left.conj() @ (spectrum * (whole == i)) @ right.conj() / (rows * cols)
        assert kernel.imag.abs().max() < 1e-9  # mirrored frequencies share a group: every W_i is real
        kernels.append(kernel.real.reshape(out, height, ins, width).permute(0, 2, 1, 3))
    return torch.stack(kernels)


def naive_bands(x, weights):
    """Each band by a mask over the whole spectrum, channel by channel."""
    height, width = x.shape[-2:]
    left, right = dft(height, width)
    distance = torch.maximum(torch.fft.fftfreq(height).abs()[:, None], torch.fft.fftfreq(width).abs()[None])
    edges = [math.inf, *CUTOFFS]
    y = 0
    for b in range(len(edges)):
        low = edges[b + 1] if b + 1 < len(edges) else -1
        mask = (distance >= low + 1e-8) & (distance < edges[b] + 1e-8)
        band = (left.conj() @ ((left @ x.to(torch.complex128) @ right) * mask) @ right.conj() / (height * width)).real
        y = y + (band if b == len(CUTOFFS) else band * weights[:, b : b + 1])
    return y


def naive_fd_conv(layer, x):
    """Paper, section 3: sum of disjoint kernels, times the global and local factors, on the band-modulated input."""
    glob, local = layer.global_modulation, layer.local_modulation
    pooled = x.mean((2, 3))
    hidden = naive_norm(glob.norm, (pooled @ glob.fc.weight.T)[..., None, None]).flatten(1)
    hidden = glob.act.scale * torch.relu(hidden) ** 2 + glob.act.bias
    kernels = disjoint_kernels(layer.weight, layer.group, layer.num_experts)
    if layer.band_weight is not None:
        logits = nn.functional.conv2d(x, layer.band_weight, layer.band_bias, padding=1)
        x = naive_bands(x, 2 * torch.sigmoid(logits))
    y = [
        naive_conv(layer, sample, naive_kernel(layer, kernels, hidden[i], local.norm(pooled[i]))) for i, sample in enumerate(x)
    ]
    y = torch.stack(y)
    return y if layer.bias is None else y + layer.bias.view(-1, 1, 1)


def naive_kernel(layer, kernels, hidden, channels):
    glob, local = layer.global_modulation, layer.local_modulation

    def factor(head):
        return 2 * torch.sigmoid(head.weight @ hidden + head.bias)

    kernel = sum(a * w for a, w in zip(factor(glob.frequency_fc), kernels))
    out, ins, height, width = kernel.shape
    channel = factor(glob.channel_fc)
    filters = 1 if glob.filter_fc is None else factor(glob.filter_fc)
    spatial = torch.ones(height * width) if glob.spatial_fc is None else factor(glob.spatial_fc)
    reach = local.neighbours // 2
    padded = nn.functional.pad(channels, (reach, reach))
    rows = []
    for o in range(out):
        first = o // (out // layer.groups) * ins
        row = torch.stack(
            [
                channel[first + c] * 2 * torch.sigmoid(local.filters[o] @ padded[first + c : first + c + local.neighbours])
                for c in range(ins)
            ]
        )
        rows.append(row * spatial * (1 if glob.filter_fc is None else filters[o]))
    return kernel * torch.stack(rows).view(out, ins, height, width)


@settings(deadline=None, max_examples=40)
@given(case=conv_cases(), num_experts=st.sampled_from([1, 3, 8, None]))
def test_matches_the_paper(case, num_experts):
    conv = case['conv']
    probe = FDConv2d(**conv)
    num_experts = None if num_experts is None else min(num_experts, probe.group.numel())
    assert_same_as(FDConv2d(**conv, num_experts=num_experts), naive_fd_conv, case)


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(1, 14), cols=st.integers(1, 14), part=st.floats(0.05, 1))
def test_groups_are_rings_of_equal_size(rows, cols, part):
    size = rows * (cols // 2 + 1)
    n = max(1, int(size * part))
    group = frequency_groups(rows, cols, n)
    assert group[0, 0] == 0 and group.max() <= n - 1
    radius = torch.fft.fftfreq(rows)[:, None] ** 2 + torch.fft.rfftfreq(cols)[None] ** 2
    order = radius.flatten().argsort(stable=True)
    # mirrored pairs lie at the same radius, so evening them out moves a frequency by no more than a ring of ties
    wanted = torch.arange(size) * n // size
    ties = [(radius.flatten() - radius.flatten()[i]).abs() < 1e-9 for i in order]
    assert all(wanted[tie[order]].min() <= group.flatten()[i] <= wanted[tie[order]].max() for i, tie in zip(order, ties))
    kernel = torch.randn(rows, cols, 1, 1)
    torch.testing.assert_close(scale_frequencies(kernel, torch.ones(1, n), group)[0], kernel, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('size', [(1, 1), (5, 8), (16, 16), (33, 20)])
def test_bands_of_weight_one_give_the_input(size):
    x = torch.randn(2, 3, *size)
    torch.testing.assert_close(modulate_bands(x, torch.ones(2, 3, *size)), x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kernel_size, groups', [(3, 1), (1, 1), (3, 4), (3, 16)])
def test_starts_as_the_static_convolution_and_loads_its_weights(kernel_size, groups):
    static = nn.Conv2d(16, 16, kernel_size, padding=1, groups=groups)
    layer = FDConv2d(16, 16, kernel_size, padding=1, groups=groups).eval()
    result = layer.load_state_dict(static.state_dict(), strict=False)
    assert not result.unexpected_keys and not {'weight', 'bias'} & set(result.missing_keys)
    x = torch.randn(2, 16, 9, 9)
    torch.testing.assert_close(layer(x), static(x), rtol=1e-3, atol=1e-3)


def test_budget_of_the_kernel_is_that_of_the_convolution():
    for n in (1, 64):
        assert FDConv2d(16, 32, 3, num_experts=n).weight.numel() == 16 * 32 * 9


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(num_experts=0), 'num_experts=0 must be a whole number'),
        (dict(num_experts=10_000), 'num_experts=10000 is more than the 1200 frequencies'),
        (dict(reduction=17), 'reduction=17 must lie between 1 and 16'),
        (dict(groups=3), 'divisible by groups'),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        FDConv2d(16, 16, 3, **options)

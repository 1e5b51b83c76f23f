"""Winograd's filtering against the plain convolution, and what is taken for faster."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmkerneldna.backbones import KDNAResNet
from mmkerneldna.deploy import deploy, winograd_choice
from mmkerneldna.deploy import packed as packed_module
from mmkerneldna.deploy import winograd as winograd_module
from mmkerneldna.deploy.packed import RELU, Activation, PackedConv2d
from mmkerneldna.deploy.packing import packed_weight_bytes
from mmkerneldna.deploy.winograd import transforms, winograd_conv, winograd_kernel


@pytest.fixture
def always(monkeypatch):
    """Every convolution of the kind is computed so, and what is noted elsewhere does not count."""
    monkeypatch.setattr(packed_module, 'FASTER', {})
    monkeypatch.setattr(packed_module, 'is_faster', lambda direct, winograd: True)
    monkeypatch.setattr(winograd_choice, 'FEWEST_CHANNELS', 1)
    monkeypatch.setattr(winograd_choice, 'FEWEST_TILES', 1)


def test_the_transforms_correlate():
    a, b, g = transforms()
    torch.manual_seed(0)
    signal, taps = torch.randn(6, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    sums = torch.stack([(signal[i : i + 3] * taps).sum() for i in range(4)])
    torch.testing.assert_close(a @ ((g @ taps) * (b @ signal)), sums, rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(
    images=st.integers(1, 5), height=st.integers(1, 23), width=st.integers(1, 23), inside=st.integers(1, 7),
    out=st.integers(1, 7), top=st.integers(0, 3), left=st.integers(0, 3), tiles=st.integers(1, 40),
    channels_last=st.booleans(),
)  # fmt: skip
def test_it_is_the_convolution(images, height, width, inside, out, top, left, tiles, channels_last):
    height, width = max(height, 3 - 2 * top), max(width, 3 - 2 * left)
    x = torch.randn(images, inside, height, width, generator=torch.Generator().manual_seed(height * 100 + width))
    weight = torch.randn(out, inside, 3, 3, generator=torch.Generator().manual_seed(out))
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    before, winograd_module.TILES = winograd_module.TILES, tiles  # strips of all kinds
    try:
        y = winograd_conv(x, winograd_kernel(weight), (top, left))
    finally:
        winograd_module.TILES = before
    expected = F.conv2d(x.double(), weight.double(), padding=(top, left))
    assert y.shape == expected.shape and y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_few_digits_are_lost():
    """On as many terms as a wide layer sums, fewer than the usual points (0, 1, -1, 2, -2) lose."""
    x = torch.randn(1, 256, 16, 16, generator=torch.Generator().manual_seed(0)).relu()
    weight = torch.randn(32, 256, 3, 3, generator=torch.Generator().manual_seed(1))
    expected = F.conv2d(x.double(), weight.double(), padding=1)
    error = (winograd_conv(x, winograd_kernel(weight), (1, 1)) - expected).std() / expected.std()
    assert error < 2.5e-6


@torch.no_grad()
@pytest.mark.parametrize('other', [False, True])
@pytest.mark.parametrize('activation', [Activation(), RELU, Activation('leaky_relu', (0.1,))])
def test_bias_sum_and_activation_come_with_it(always, other, activation):
    conv = nn.Conv2d(5, 6, 3, padding=1)
    packed, x = PackedConv2d(conv), torch.randn(3, 5, 10, 9)
    summand = torch.randn(3, 6, 10, 9) if other else None
    y = conv(x) if summand is None else conv(x) + summand
    assert_same(packed(x, summand, activation), activation.plainly(y))
    assert all(key == ('winograd',) for key in packed.packed._by_call)


@torch.no_grad()
def test_a_changed_kernel_is_transformed_anew(always):
    conv = nn.Conv2d(5, 6, 3, padding=1).requires_grad_(False)
    packed, x = PackedConv2d(conv), torch.randn(1, 5, 8, 8)
    packed(x)
    packed.weight.mul_(2)
    assert_same(packed(x), conv(x))


@torch.no_grad()
@pytest.mark.parametrize(
    'options',
    [dict(stride=2), dict(dilation=2), dict(groups=2), dict(kernel_size=1), dict(kernel_size=5), dict(padding_mode='reflect')],
)
def test_other_convolutions_are_left_as_they_are(always, monkeypatch, options):
    monkeypatch.setattr(packed_module, 'winograd_conv', None)
    conv = nn.Conv2d(4, 4, **{**dict(kernel_size=3, padding=1), **options})
    x = torch.randn(1, 4, 12, 12)
    assert_same(PackedConv2d(conv)(x), conv(x))


@torch.no_grad()
def test_a_deployed_net_has_the_same_features(always):
    torch.manual_seed(0)
    net = randomise(KDNAResNet(18, base_channels=8)).eval()
    x = torch.randn(2, 3, 64, 96)
    fast, direct = deploy(net), deploy(net, winograd=False)
    for ours, plain, expected in zip(fast(x), direct(x), net(x)):
        assert_same(ours, expected)
        assert not torch.equal(ours, plain)
    layers = [m for m in fast.modules() if isinstance(m, PackedConv2d) and ('winograd',) in m.packed._by_call]
    assert len(layers) == sum(
        m.kernel_size == (3, 3) and m.stride == (1, 1) for m in fast.modules() if isinstance(m, PackedConv2d)
    )
    held = {id(m.packed): 4 * m.weight.nbytes for m in layers}
    assert packed_weight_bytes(nn.ModuleList(layers)) == sum(held.values())  # 36 numbers for 9


@torch.no_grad()
def test_the_measurement_is_made_once_per_kind_of_call(monkeypatch):
    monkeypatch.setattr(packed_module, 'FASTER', {})
    asked = []
    monkeypatch.setattr(packed_module, 'is_faster', lambda *ways: asked.append([way() for way in ways]) or False)
    conv = nn.Conv2d(64, 64, 3, padding=1)
    for size in (16, 17, 16, 32, 8):  # 17 needs 25 tiles, 16 of them 16: another half octave; 8 has too few
        x = torch.randn(1, 64, size, size)
        assert_same(PackedConv2d(conv)(x), conv(x))
    assert len(asked) == 3
    assert_same(*asked[0])


def test_what_takes_clearly_less_time_is_faster(monkeypatch):
    """The clock is moved by the calls, not by the machine."""
    now = [0.0]
    monkeypatch.setattr(winograd_choice.time, 'perf_counter', lambda: now[0])

    def call(seconds):
        now[0] += seconds

    is_faster = winograd_choice.is_faster
    assert is_faster(partial(call, 1.0), partial(call, 0.8))
    assert not is_faster(partial(call, 1.0), partial(call, 0.95))
    assert not is_faster(partial(call, 1.0), partial(call, 3.0))
    disturbed = iter([9.0, 5.0, 0.5])  # the call that lays out, a round beside something else, an undisturbed one
    assert is_faster(partial(call, 0.6), lambda: call(next(disturbed)))

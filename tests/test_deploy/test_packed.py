"""Convolutions with a packed kernel against F.conv2d, and that they never use a kernel that is out of date."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.cnn import ConvModule
from torch import nn

from mmkerneldna.deploy.packed import PackedConv2d
from mmkerneldna.deploy.packed_linear import PackedLinear
from mmkerneldna.deploy.packing import pack_layers, packed_weight_bytes


def packed_calls(monkeypatch, name='_convolution_pointwise'):
    """Counts the calls of one of oneDNN's packed functions."""
    calls, real = [], getattr(torch.ops.mkldnn, name)
    monkeypatch.setattr(torch.ops.mkldnn, name, lambda *args: calls.append(args[0].shape) or real(*args))
    return calls


@settings(deadline=None, max_examples=60)
@given(
    kernel=st.sampled_from([1, 2, 3, (1, 3), 7]),
    stride=st.integers(1, 2),
    padding=st.sampled_from([0, 1, (2, 1)]),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 8]),
    bias=st.booleans(),
    batch=st.integers(1, 3),
    side=st.integers(14, 20),
    channels_last=st.booleans(),
)
def test_equals_conv2d(kernel, stride, padding, dilation, groups, bias, batch, side, channels_last):
    conv = nn.Conv2d(8, 16, kernel, stride, padding, dilation, groups, bias)
    packed = PackedConv2d(conv)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for height in (side, side + 5):  # the packed kernel serves every size
        x = torch.randn(batch, 8, height, side).contiguous(memory_format=layout)
        expected_bias = None if conv.bias is None else conv.bias.double()
        expected = F.conv2d(x.double(), conv.weight.double(), expected_bias, stride, padding, dilation, groups)
        with torch.no_grad():
            y = packed(x)
        assert y.dtype == torch.float32
        torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-5)


def test_the_kernel_is_packed_once_and_again_when_it_changes(monkeypatch):
    conv = nn.Conv2d(4, 4, 3, bias=False).requires_grad_(False)
    packed, x = PackedConv2d(conv), torch.randn(1, 4, 8, 8)
    calls = packed_calls(monkeypatch)
    packed(x)
    kept = packed.packed.layouts()
    packed(x)
    assert packed.packed.layouts()[0] is kept[0] and len(kept) == 1 and len(calls) == 2
    conv.weight.mul_(2)
    torch.testing.assert_close(packed(x), F.conv2d(x, conv.weight))
    packed.load_state_dict({'weight': torch.ones(4, 4, 3, 3)})
    torch.testing.assert_close(packed(x), F.conv2d(x, torch.ones(4, 4, 3, 3)))
    packed.weight = nn.Parameter(torch.zeros(4, 4, 3, 3), requires_grad=False)
    assert not packed(x).any()
    assert len(calls) == 5


def test_every_size_gets_its_layout_and_each_layout_is_kept_once(monkeypatch):
    """A kernel in a layout for another size is laid out anew inside every call."""
    from mmkerneldna.deploy import packed as packed_module
    from mmkerneldna.deploy import packed_kernels

    conv = nn.Conv2d(4, 4, 3).requires_grad_(False)
    packed, asked, real = PackedConv2d(conv), [], packed_module.pack_kernel
    monkeypatch.setattr(packed_module, 'pack_kernel', lambda *args: asked.append(tuple(args[-1])) or real(*args))
    monkeypatch.setattr(packed_kernels, 'packed_layout', lambda packed: 'wide' if asked[-1][3] > 9 else 'narrow')
    for side in (8, 9, 10, 8, 12, 9):
        packed(torch.randn(1, 4, side, side))
    assert asked == [(1, 4, side, side) for side in (8, 9, 10, 12)]
    assert len(packed.packed.layouts()) == 2


def test_casting_repacks():
    packed, x = PackedConv2d(nn.Conv2d(4, 4, 3)).requires_grad_(False), torch.randn(1, 4, 8, 8)
    expected = packed(x)
    torch.testing.assert_close(packed.double()(x.double()).float(), expected)
    torch.testing.assert_close(packed.float()(x), expected)


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason='this CPU has no bf16 convolutions')
def test_bf16(monkeypatch):
    packed, x = PackedConv2d(nn.Conv2d(4, 4, 3)).requires_grad_(False), torch.randn(1, 4, 8, 8)
    expected, calls = packed(x), packed_calls(monkeypatch)
    y = packed.bfloat16()(x.bfloat16())
    assert y.dtype == torch.bfloat16 and len(calls) == 1
    torch.testing.assert_close(y.float(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize('options', [dict(padding='same'), dict(padding=1, padding_mode='reflect'), {}])
def test_what_cannot_be_packed_runs_plainly(monkeypatch, options):
    conv = nn.Conv2d(4, 4, 3, **options)
    packed, calls = PackedConv2d(conv), packed_calls(monkeypatch)
    x = torch.randn(2, 4, 7, 7, requires_grad=True)
    torch.testing.assert_close(packed(x), conv(x))
    grads = [torch.autograd.grad(layer(x).square().sum(), (x, conv.weight)) for layer in (packed, conv)]
    torch.testing.assert_close(grads[0], grads[1])
    with torch.no_grad():
        assert packed(x[:0]).shape[0] == 0
    assert not calls


def test_wrong_channels_raise_what_conv2d_raises():
    packed = PackedConv2d(nn.Conv2d(4, 4, 3)).requires_grad_(False)
    packed(torch.randn(1, 4, 7, 7))
    with pytest.raises(RuntimeError, match='to have 4 channels, but got 5'):
        packed(torch.randn(1, 5, 7, 7))


def test_trace_is_free_of_it(monkeypatch):
    packed, x = PackedConv2d(nn.Conv2d(4, 4, 3)).requires_grad_(False), torch.randn(1, 4, 7, 7)
    expected, calls = packed(x), packed_calls(monkeypatch)
    traced = torch.jit.trace(packed, x, check_trace=False)
    assert not calls and 'mkldnn' not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(x), expected)


@pytest.mark.parametrize('clone', [copy.deepcopy, lambda m: _through_a_file(m)])
def test_copies_pack_their_own(clone):
    packed, x = PackedConv2d(nn.Conv2d(4, 4, 3)).requires_grad_(False), torch.randn(1, 4, 7, 7)
    expected = packed(x)
    other = clone(packed)
    assert not other.packed.layouts()
    torch.testing.assert_close(other(x), expected)


def _through_a_file(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def test_plain_layers_alone_are_replaced():

    class Odd(nn.Conv2d):
        pass

    shared = nn.Conv2d(3, 3, 1)
    net = nn.Sequential(shared, ConvModule(3, 4, 3), nn.Conv1d(4, 4, 1), Odd(3, 3, 1), nn.Sequential(shared))
    keys = list(net.state_dict())
    assert pack_layers(net) == 2
    assert isinstance(net[0], PackedConv2d) and net[4][0] is net[0] and isinstance(net[1].conv, PackedConv2d)
    assert type(net[3]) is Odd and net[0].weight is shared.weight and list(net.state_dict()) == keys
    assert pack_layers(net) == 0


def test_nothing_is_packed_without_onednn(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, 'is_available', lambda: False)
    net = nn.Sequential(nn.Conv2d(3, 3, 1))
    assert pack_layers(net) == 0 and type(net[0]) is nn.Conv2d


@settings(deadline=None, max_examples=40)
@given(
    columns=st.integers(1, 40),
    out=st.integers(1, 40),
    bias=st.booleans(),
    rows=st.lists(st.integers(0, 300), min_size=2, max_size=2),
)
def test_fully_connected_layers_equal_linear(columns, out, bias, rows):
    linear = nn.Linear(columns, out, bias)
    packed = PackedLinear(linear)
    for count in rows:  # the packed matrix serves every number of rows
        x = torch.randn(count, columns)
        with torch.no_grad():
            y = packed(x)
        expected = F.linear(x.double(), linear.weight.double(), None if linear.bias is None else linear.bias.double())
        torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_matrix_is_packed_once_and_again_when_it_changes(monkeypatch):
    linear = nn.Linear(6, 4).requires_grad_(False)
    packed, x, calls = PackedLinear(linear), torch.randn(5, 6), packed_calls(monkeypatch, '_linear_pointwise')
    packed(x)
    kept = packed.packed.layouts()
    packed(x[:4])
    assert packed.packed.layouts()[0] is kept[0] and len(kept) == 1 and len(calls) == 2
    linear.weight.mul_(2)
    torch.testing.assert_close(packed(x), F.linear(x, linear.weight, linear.bias))
    assert packed_weight_bytes(packed) >= linear.weight.nbytes and len(calls) == 3


def test_rows_that_are_not_packed_run_plainly(monkeypatch):
    linear = nn.Linear(6, 4)
    packed, calls = PackedLinear(linear), packed_calls(monkeypatch, '_linear_pointwise')
    x = torch.randn(5, 6, requires_grad=True)
    torch.testing.assert_close(packed(x), linear(x))
    with torch.no_grad():
        for shape in ((2, 3, 6), (6,), (1, 6), (0, 6)):
            x = torch.randn(shape)
            torch.testing.assert_close(packed(x), linear(x))
        with pytest.raises(RuntimeError, match='shapes cannot be multiplied'):
            packed(torch.randn(2, 5))
    assert not calls


def test_plain_fully_connected_layers_are_packed_too():

    class Odd(nn.Linear):
        pass

    net = nn.Sequential(nn.Linear(3, 4), Odd(4, 4), nn.Linear(4, 3, bias=False)).requires_grad_(False)
    net[2].weight = net[0].weight = nn.Parameter(torch.randn(4, 4), requires_grad=False)
    net[0].in_features = net[2].out_features = 4
    assert pack_layers(net) == 2 and type(net[1]) is Odd
    assert net[0].packed is net[2].packed
    x = torch.randn(3, 4)
    torch.testing.assert_close(net[0](x), F.linear(x, net[0].weight, net[0].bias))

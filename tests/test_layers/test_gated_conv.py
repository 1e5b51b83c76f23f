"""The recomputing convolution of a child against the plain formula."""
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmkerneldna.layers import ChildConv2d
from mmkerneldna.layers.gated_conv import gated_conv2d


def _arguments(kernel, groups, bias, dtype=torch.double, channels=(4, 6)):
    torch.manual_seed(0)
    c_in, c_out = channels
    make = lambda *shape: torch.randn(*shape, dtype=dtype, requires_grad=True)  # noqa: E731
    return (make(2, c_in, 7, 6), make(2, c_in, 1, 1), make(c_out, c_in // groups, kernel, kernel), make(c_out, 1, 1, 1),
            make(1, 1, kernel, kernel) if kernel > 1 else None, make(c_out) if bias else None)


def _plain(x, gate, weight, filter_scale, spatial_scale, bias, *geometry):
    kernel = weight * (1 + filter_scale)
    if spatial_scale is not None:
        kernel = kernel * (1 + spatial_scale)
    return F.conv2d(x * gate, kernel, bias, *geometry)


def _gradients(function, arguments, *geometry):
    leaves = [a for a in arguments if a is not None and a.requires_grad]
    y = function(*arguments, *geometry)
    return y, torch.autograd.grad(y.square().sum(), leaves)


@settings(deadline=None, max_examples=25)
@given(kernel=st.sampled_from([1, 3, 5]), groups=st.sampled_from([1, 2]), bias=st.booleans(), stride=st.integers(1, 2),
       dilation=st.integers(1, 2), padding=st.integers(2, 4), frozen=st.sets(st.integers(0, 5)))
def test_equals_plain_formula(kernel, groups, bias, stride, dilation, padding, frozen):
    arguments = _arguments(kernel, groups, bias)
    for i in frozen - {2}:
        if arguments[i] is not None:
            arguments[i].requires_grad_(False)
    geometry = ((stride, stride), (padding, padding), (dilation, dilation), groups)
    y, grads = _gradients(gated_conv2d, arguments, *geometry)
    y_plain, grads_plain = _gradients(_plain, arguments, *geometry)
    torch.testing.assert_close(y, y_plain)
    for grad, expected in zip(grads, grads_plain):
        torch.testing.assert_close(grad, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('kernel, bias', [(1, True), (3, False)])
def test_gradcheck(kernel, bias):
    arguments = _arguments(kernel, 2, bias)
    assert torch.autograd.gradcheck(lambda *a: gated_conv2d(*a, (2, 2), (1, 1), (1, 1), 2), arguments)


def test_second_derivative_is_refused():
    arguments = _arguments(3, 1, False)
    y = gated_conv2d(*arguments, (1, 1), (1, 1), (1, 1), 1)
    grad, = torch.autograd.grad(y.square().sum(), arguments[0], create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        grad.sum().backward()


def _child(channels=8):
    torch.manual_seed(0)
    parent = nn.Conv2d(channels, channels, 3, padding=1)
    child = ChildConv2d.from_conv(nn.Conv2d(channels, channels, 3, padding=1, bias=False), parent)
    nn.init.normal_(child.filter_scale, std=0.3)
    nn.init.normal_(child.spatial_scale, std=0.3)
    return child.eval()


def _child_gradients(child, x, forward=None):
    child.zero_grad()
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = (forward or child)(x)
    y.float().square().mean().backward()
    return y, [x.grad] + [p.grad for p in child.parameters()]


def _assert_all_close(actual, expected, **tolerance):
    torch.testing.assert_close(actual[0], expected[0], check_dtype=True, **tolerance)
    assert len(actual[1]) == len(expected[1]) == 9
    for grad, target in zip(actual[1], expected[1]):
        torch.testing.assert_close(grad, target, **tolerance)


def _force_plain(monkeypatch):
    monkeypatch.setattr('mmkerneldna.layers.child_conv.can_recompute', lambda *a: False)


@pytest.mark.parametrize('channels_last', [False, True])
def test_child_equals_plain_path(monkeypatch, channels_last):
    child, x = _child(), torch.randn(3, 8, 9, 7)
    if channels_last:
        child, x = child.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    actual = _child_gradients(child, x)
    assert actual[0].is_contiguous(memory_format=torch.channels_last) or not channels_last
    _force_plain(monkeypatch)
    _assert_all_close(actual, _child_gradients(child, x))


def test_child_under_autocast_equals_plain_path(monkeypatch):
    child, x = _child(), torch.randn(3, 8, 9, 7)
    with torch.autocast('cpu', torch.bfloat16):
        actual = _child_gradients(child, x)
        _force_plain(monkeypatch)
        expected = _child_gradients(child, x)
    assert actual[0].dtype == torch.bfloat16
    assert all(grad.dtype == torch.float32 for grad in actual[1])
    _assert_all_close(actual, expected, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize('reentrant', [False, True])
def test_child_under_activation_checkpointing(reentrant):
    child, x = _child(), torch.randn(2, 8, 5, 5)
    expected = _child_gradients(child, x)
    actual = _child_gradients(child, x, lambda x: checkpoint(child, x, use_reentrant=reentrant))
    _assert_all_close(actual, expected)


def _kept_bytes(child, x):
    """Bytes that autograd keeps, each storage once, without parameters, buffers and the input."""
    storages = {}
    with torch.autograd.graph.saved_tensors_hooks(
            lambda t: storages.setdefault(t.untyped_storage().data_ptr(), (t, t.untyped_storage().nbytes())) and t,
            lambda t: t):
        y = child(x)  # noqa: F841  (keeps the graph, and so the storages, alive)
    known = {t.untyped_storage().data_ptr() for t in (x, *child.parameters(), *child.buffers())}
    return sum(size for pointer, (_, size) in storages.items() if pointer not in known)


def test_neither_map_nor_kernel_is_kept(monkeypatch):
    child, x = _child(16), torch.randn(2, 16, 20, 20, requires_grad=True)
    kept = _kept_bytes(child, x)
    assert kept < x.nbytes / 10
    _force_plain(monkeypatch)
    assert _kept_bytes(child, x) >= kept + x.nbytes + child.weight.nbytes


def test_padding_modes_and_names_keep_working():
    parent = nn.Conv2d(8, 8, 3)
    x = torch.randn(1, 8, 6, 6)
    for options in (dict(padding='same'), dict(padding=1, padding_mode='reflect')):
        child = ChildConv2d(parent, **options).eval()
        reference = nn.Conv2d(8, 8, 3, bias=False, **options)
        reference.weight = nn.Parameter(child.modulated_weight())
        torch.testing.assert_close(child(x), reference(x * child.gate(x)))

"""The low-rank residual of a child's kernel, and children without a spatial scale."""

import pytest
import torch
import torch.nn.functional as F
from helpers import randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.cnn import ConvModule, fuse_conv_bn
from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval_for_single_model
from torch import nn

from mmkerneldna.errors import UsageError
from mmkerneldna.layers import ChildConv2d
from mmkerneldna.layers.gated_conv import gated_conv2d

GEOMETRY = ((2, 2), (2, 2), (1, 1))


def child_of(parent, **options):
    return randomise(ChildConv2d(parent, padding=parent.kernel_size[0] // 2, **options)).eval()


def kernel_by_loops(child):
    """Every tap on its own: the parent's times its two factors, plus a sum of r products."""
    kernel, columns = torch.empty_like(child.weight), child.weight[0].numel()
    for o in range(kernel.shape[0]):
        for column in range(columns):
            i, y, x = column // 9, column % 9 // 3, column % 3
            scale = 1 if child.spatial_scale is None else 1 + child.spatial_scale[0, 0, y, x]
            kernel[o, i, y, x] = child.weight[o, i, y, x] * (1 + child.filter_scale[o, 0, 0, 0]) * scale
            kernel[o, i, y, x] += sum(
                child.residual_b[o, r] * child.residual_a[r, column] for r in range(child.residual_a.shape[0])
            )
    return kernel


@pytest.mark.parametrize('groups, spatial_scale, padding_mode', [(1, True, 'zeros'), (2, False, 'zeros'), (1, True, 'reflect')])
def test_equals_the_formula(groups, spatial_scale, padding_mode):
    parent = nn.Conv2d(6, 4, 3, groups=groups)
    child = child_of(parent, residual_rank=3, spatial_scale=spatial_scale, padding_mode=padding_mode)
    x = torch.randn(2, 6, 5, 7)
    with torch.no_grad():
        kernel = kernel_by_loops(child)
        reference = nn.Conv2d(6, 4, 3, padding=1, groups=groups, bias=False, padding_mode=padding_mode)
        reference.weight = nn.Parameter(kernel)
        torch.testing.assert_close(child(x), reference(x * child.gate(x)), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(child.modulated_weight(), kernel)
        torch.testing.assert_close(child.to_plain().weight, kernel)


@settings(deadline=None, max_examples=25)
@given(
    kernel=st.sampled_from([1, 3]),
    groups=st.sampled_from([1, 2]),
    rank=st.integers(1, 4),
    spatial=st.booleans(),
    frozen=st.sets(st.integers(0, 6)),
)
def test_gradients_equal_those_of_the_plain_formula(kernel, groups, rank, spatial, frozen):
    torch.manual_seed(0)
    shapes = [
        (2, 4, 7, 6),
        (2, 4, 1, 1),
        (6, 4 // groups, kernel, kernel),
        (6, 1, 1, 1),
        (1, 1, kernel, kernel),
        (6, rank),
        (rank, 4 // groups * kernel**2),
    ]
    parts = [torch.randn(s, dtype=torch.double, requires_grad=i not in frozen - {6}) for i, s in enumerate(shapes)]
    x, gate, weight, filter_scale, spatial_scale, b, a = parts
    if not spatial:
        spatial_scale = None
    y = gated_conv2d(x, gate, weight, filter_scale, spatial_scale, None, *GEOMETRY, groups, b, a)
    full = weight * (1 + filter_scale) * (1 if spatial_scale is None else 1 + spatial_scale)
    full = full + torch.einsum('or,rc->oc', b, a).view_as(weight)
    expected = F.conv2d(x * gate, full, None, *GEOMETRY, groups)
    torch.testing.assert_close(y, expected)
    leaves = [p for p in (x, gate, weight, filter_scale, spatial_scale, b, a) if p is not None and p.requires_grad]
    grads = [torch.autograd.grad(output.square().sum(), leaves) for output in (y, expected)]
    for ours, theirs in zip(*grads):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_starts_as_without_and_is_free_to_train():
    parent, x = nn.Conv2d(8, 8, 3), torch.randn(2, 8, 6, 6)
    torch.manual_seed(0)
    plain = ChildConv2d(parent, padding=1)
    torch.manual_seed(0)
    child = ChildConv2d(parent, padding=1, residual_rank=2)
    assert torch.equal(plain(x), child(x))
    child(x).square().sum().backward()
    assert child.residual_a.abs().sum() > 0 and child.residual_b.grad.abs().sum() > 0


def test_a_rank_outside_the_kernels_is_refused():
    for rank in (-1, 9):
        with pytest.raises(ValueError, match=f'residual_rank={rank} must lie between 0 and 8.*8 x 72'):
            ChildConv2d(nn.Conv2d(8, 8, 3), residual_rank=rank)


def test_sizes_and_state():
    parent = nn.Conv2d(8, 8, 3)
    plain, child = ChildConv2d(parent), child_of(parent, residual_rank=2)
    residual = 2 * (8 + 72)
    assert child.own_size() == plain.own_size() + residual
    assert child.deployed_size() == plain.deployed_size()
    assert {id(child.residual_a), id(child.residual_b)} < {id(p) for p in child.adapter_parameters()}
    assert sum(p.numel() for p in child.adapter_parameters()) == child.own_size()
    twin = ChildConv2d(parent, residual_rank=2)
    twin.load_state_dict(child.state_dict(), strict=True)
    assert torch.equal(twin.modulated_weight(), child.modulated_weight())
    with pytest.raises(RuntimeError, match='residual_a'):
        plain.load_state_dict(child.state_dict())


def test_without_spatial_scale():
    child = ChildConv2d(nn.Conv2d(8, 8, 3), spatial_scale=False)
    assert child.spatial_scale is None and 'spatial_scale' not in child.state_dict()


def test_product_is_not_rounded_under_autocast():
    """Forward and backward then compute with one kernel, rounded once."""
    torch.manual_seed(0)
    child, x = child_of(nn.Conv2d(16, 16, 3), residual_rank=8), torch.randn(2, 16, 6, 6)
    with torch.autocast('cpu', torch.bfloat16):
        kernel = child.modulated_weight()
        y = child(x)
        gated = x * child.gate(x)
    torch.testing.assert_close(kernel, child.modulated_weight(), rtol=0, atol=0)
    torch.testing.assert_close(y, F.conv2d(gated.bfloat16(), kernel.bfloat16(), padding=1))


def block(rank=3, bias=False):
    """A child and its norm, the parent outside."""
    parent = nn.Conv2d(8, 6, 3)
    conv = ConvModule(8, 6, 3, padding=1, bias=bias, norm_cfg=dict(type='BN'), act_cfg=None)
    conv.conv = ChildConv2d(parent, padding=1, bias=bias, residual_rank=rank)
    return randomise(conv).eval(), parent


def gradients(module, x):
    module.zero_grad()
    x = x.clone().requires_grad_()
    y = module(x)
    y.square().sum().backward()
    return [y, x.grad] + [p.grad.clone() for p in module.parameters()]


def turn_on(module):
    module.turn_on_efficient_conv_bn_eval()


@pytest.mark.parametrize('turn_on', [turn_on, turn_on_efficient_conv_bn_eval_for_single_model])
@pytest.mark.parametrize('bias', [False, True])
def test_the_norms_factor_reaches_the_residual(turn_on, bias, monkeypatch):
    """mmengine's efficient_conv_bn_eval multiplies it into the kernel; values and gradients stay."""
    conv, _ = block(bias=bias)
    conv, x = conv.double(), torch.randn(2, 8, 5, 5, dtype=torch.double)
    module = conv if turn_on is globals()['turn_on'] else nn.Sequential(conv.conv, conv.bn)
    expected = gradients(module, x)
    calls, original = [], ChildConv2d._conv_forward
    monkeypatch.setattr(ChildConv2d, '_conv_forward', lambda *args: calls.append(1) or original(*args))
    turn_on(module)
    for ours, theirs in zip(gradients(module, x), expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert calls


def test_a_filter_of_zeros_is_refused_where_the_factor_is_needed():
    conv, parent = block()
    with torch.no_grad():
        parent.weight[4] = 0
    x = torch.randn(1, 8, 5, 5)
    assert conv(x).isfinite().all()
    with pytest.raises(UsageError, match='filter 4 of a borrowed kernel is zero'):
        fuse_conv_bn(conv)
    turn_on(conv)
    with pytest.raises(UsageError, match='filter 4 of a borrowed kernel is zero.*efficient_conv_bn_eval'):
        conv(x)


@pytest.mark.parametrize('bias', [False, True])
def test_fusing_by_mmcv_takes_the_residual_along(bias):
    conv, x = block(bias=bias)[0], torch.randn(2, 8, 5, 5)
    with torch.no_grad():
        expected = conv(x)
        torch.testing.assert_close(fuse_conv_bn(conv)(x), expected, rtol=1e-4, atol=1e-5)


def test_another_kernel_leaves_the_residual_alone():
    child = child_of(nn.Conv2d(8, 8, 3), residual_rank=2)
    before = child.residual_b.detach().clone()
    child.weight = nn.Parameter(torch.randn_like(child.weight))
    assert torch.equal(child.residual_b, before)
    child.weight = nn.Parameter(child.weight.detach() * 2)
    assert torch.equal(child.residual_b, before * 2)


def kept_bytes(child, x):
    """Bytes that autograd keeps beside parameters, buffers and the input."""
    storages = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: storages.setdefault(t.untyped_storage().data_ptr(), t), lambda t: t
    ):
        y = child(x)  # noqa: F841  (keeps the graph, and so the storages, alive)
    known = {t.untyped_storage().data_ptr() for t in (x, *child.parameters(), *child.buffers())}
    return sum(t.untyped_storage().nbytes() for pointer, t in storages.items() if pointer not in known)


def test_nothing_more_is_kept_for_the_backward_pass():
    parent, x = nn.Conv2d(16, 16, 3), torch.randn(2, 16, 9, 9, requires_grad=True)
    assert kept_bytes(child_of(parent, residual_rank=8), x) == kept_bytes(child_of(parent), x)

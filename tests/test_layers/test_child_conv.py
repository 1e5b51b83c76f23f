import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.runner.checkpoint import get_state_dict
from mmengine.runner.checkpoint import load_state_dict as mmengine_load
from torch import nn

from mmkerneldna.layers import ChildConv2d
from mmkerneldna.sharing import keep_ties


class Pair(nn.Module):
    """A child in front of its parent, the order of the paper's plans."""

    def __init__(self, channels=8, **child_args):
        super().__init__()
        parent = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.child = ChildConv2d(parent, padding=1, **child_args)
        self.parent = parent
        keep_ties(self)

    def forward(self, x):
        return self.parent(self.child(x))


def naive_child(child, x):
    """The paper's formula, one output value at a time per filter: loops where the layer broadcasts."""
    gated = torch.stack([torch.stack([x[n, c] * child.gate(x)[n, c, 0, 0] for c in range(x.shape[1])]) for n in range(len(x))])
    kernel = torch.empty_like(child.weight)
    for f in range(kernel.shape[0]):
        for i in range(kernel.shape[2]):
            for j in range(kernel.shape[3]):
                spatial = 0 if child.spatial_scale is None else child.spatial_scale[0, 0, i, j]
                kernel[f, :, i, j] = child.weight[f, :, i, j] * (1 + child.filter_scale[f, 0, 0, 0]) * (1 + spatial)
    return F.conv2d(gated, kernel, child.bias, child.stride, child.padding, child.dilation, child.groups)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    kernel=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    out=st.sampled_from([4, 8]),
)
def test_equals_the_formula(batch, groups, kernel, stride, dilation, bias, out):
    parent = nn.Conv2d(8, out, kernel, groups=groups, bias=False)
    child = randomise(ChildConv2d(parent, stride, dilation * (kernel // 2), dilation, bias=bias)).eval()
    if bias:
        nn.init.normal_(child.bias)
    x = torch.randn(batch, 8, 9, 7)
    torch.testing.assert_close(child(x), naive_child(child, x), rtol=1e-4, atol=1e-5)


def test_gradients_reach_the_parent_kernel_from_both_uses():
    pair = randomise(Pair()).eval()
    x = torch.randn(2, 8, 6, 6)
    pair(x).square().sum().backward()
    weight = pair.parent.weight.detach().clone().requires_grad_()
    child = pair.child
    gated = x * child.gate(x).detach()
    hidden = F.conv2d(gated, weight * (1 + child.filter_scale.detach()) * (1 + child.spatial_scale.detach()), padding=1)
    F.conv2d(hidden, weight, padding=1).square().sum().backward()
    torch.testing.assert_close(pair.parent.weight.grad, weight.grad, rtol=1e-4, atol=1e-4)


def test_gradcheck_in_double():
    pair = randomise(Pair(4)).double().eval()
    x = torch.randn(2, 4, 3, 3, dtype=torch.double, requires_grad=True)
    parameters = dict(pair.named_parameters())

    def run(x, *values):
        return torch.func.functional_call(pair, dict(zip(parameters, values)), (x,))

    assert torch.autograd.gradcheck(run, (x, *parameters.values()))


def test_one_by_one_child_has_no_spatial_scale():
    child = ChildConv2d(nn.Conv2d(8, 4, 1))
    assert child.spatial_scale is None and child.filter_scale.shape == (4, 1, 1, 1)


def test_kernel_is_stored_once_under_the_parents_name():
    pair = Pair()
    for state in (pair.state_dict(), get_state_dict(pair)):
        assert 'parent.weight' in state and 'child.weight' not in state
    assert sum(p.numel() for p in pair.parameters()) == sum(
        v.numel() for k, v in pair.state_dict().items() if 'running' not in k and 'num_batches' not in k
    )


def test_strict_load_both_ways():
    source, target = randomise(Pair()), Pair()
    target.load_state_dict(source.state_dict(), strict=True)
    torch.testing.assert_close(target.parent.weight, source.parent.weight)
    assert target.child.weight is target.parent.weight
    mmengine_load(target, get_state_dict(source), strict=True)


def test_foreign_kernel_under_the_childs_name_never_overwrites_the_parent():
    pair, kernel = Pair(), None
    kernel = pair.parent.weight.detach().clone()
    state = dict(pair.state_dict())
    state['child.weight'] = torch.zeros_like(kernel)
    with pytest.raises(RuntimeError, match='Unexpected key.*child.weight'):
        pair.load_state_dict(state, strict=True)
    incompatible = pair.load_state_dict(state, strict=False)
    torch.testing.assert_close(pair.parent.weight, kernel)
    assert incompatible.unexpected_keys in ([], ['child.weight'])


def test_deepcopy_keeps_the_tie_inside_the_copy():
    pair = Pair()
    twin = copy.deepcopy(pair)
    assert twin.child.weight is twin.parent.weight and twin.child.tied
    assert twin.child.weight is not pair.child.weight


def test_a_rewritten_kernel_is_saved_under_its_own_name():
    pair = Pair()
    pair.child.weight = nn.Parameter(pair.child.weight.detach() * 2)
    assert not pair.child.tied and 'child.weight' in pair.state_dict()
    other = Pair()
    other.child.weight = nn.Parameter(torch.zeros_like(other.child.weight))
    other.load_state_dict(pair.state_dict(), strict=True)
    torch.testing.assert_close(other.child.weight, pair.child.weight)


def test_making_a_child_draws_no_kernel():
    parent = nn.Conv2d(8, 8, 3)
    torch.manual_seed(0)
    gate = ChildConv2d(parent).gate.fc1.weight.clone()
    torch.manual_seed(0)
    assert torch.equal(gate, ChildConv2d(parent).gate.fc1.weight)
    assert ChildConv2d(parent).weight is parent.weight


def test_from_conv_keeps_what_is_the_childs():
    conv = nn.Conv2d(8, 8, 3, stride=2, padding=2, dilation=2, padding_mode='reflect')
    parent = nn.Conv2d(8, 8, 3)
    child = ChildConv2d.from_conv(conv.eval(), parent)
    assert (child.stride, child.padding, child.dilation, child.padding_mode) == ((2, 2), (2, 2), (2, 2), 'reflect')
    assert child.bias is conv.bias and not child.training and not child.gate.training

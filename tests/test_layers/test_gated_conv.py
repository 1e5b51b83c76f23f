"""The recomputing convolution of a child against the plain formula, alone and in what surrounds it in training."""

import os
import shutil
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
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
    return (
        make(2, c_in, 7, 6),
        make(2, c_in, 1, 1),
        make(c_out, c_in // groups, kernel, kernel),
        make(c_out, 1, 1, 1),
        make(1, 1, kernel, kernel) if kernel > 1 else None,
        make(c_out) if bias else None,
    )


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
@given(
    kernel=st.sampled_from([1, 3, 5]),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    padding=st.integers(2, 4),
    frozen=st.sets(st.integers(0, 5)),
)
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


@pytest.mark.parametrize('kernel, bias', [(1, True), (3, False)])
def test_gradgradcheck(kernel, bias):
    arguments = tuple(
        a if a is None else a[:, :, :4, :4].detach().requires_grad_() if i == 0 else a
        for i, a in enumerate(_arguments(kernel, 2, bias))
    )
    assert torch.autograd.gradgradcheck(lambda *a: gated_conv2d(*a, (1, 1), (1, 1), (1, 1), 2), arguments)


def test_second_derivative_does_not_count_a_gate_that_depends_on_the_input_twice():
    x, gate, weight, filter_scale, spatial_scale, _ = _arguments(3, 1, False)

    def hessian_times_ones(convolve):
        g = x.mean((2, 3), keepdim=True).sigmoid() * gate
        y = convolve(x, g, weight, filter_scale, spatial_scale, None, (1, 1), (1, 1), (1, 1), 1)
        first = torch.autograd.grad(y.pow(3).sum(), (x, weight), create_graph=True)
        return first, torch.autograd.grad(sum(t.sum() for t in first), (x, gate, weight, filter_scale, spatial_scale))

    actual, expected = hessian_times_ones(gated_conv2d), hessian_times_ones(_plain)
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)


def test_first_derivative_under_autocast_can_be_differentiated():
    child, x = _child(), torch.randn(2, 8, 6, 6, requires_grad=True)
    with torch.autocast('cpu', torch.bfloat16):
        y = child(x)
    grads = torch.autograd.grad(y.float().square().sum(), [x, child.weight], create_graph=True)
    sum(g.square().sum() for g in grads).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in child.parameters() if p is not child.bias)


def _functional(child):
    state = {**dict(child.named_parameters()), **dict(child.named_buffers())}
    return state, lambda state, x: torch.func.functional_call(child, state, (x,)).square().mean()


def test_func_transforms():
    child, x = _child().double(), torch.randn(3, 8, 5, 5, dtype=torch.double)
    state, loss = _functional(child)
    child.zero_grad()
    loss(state, x).backward()
    expected = {name: p.grad.clone() for name, p in child.named_parameters()}
    parameters = {name: p.detach() for name, p in child.named_parameters()}
    buffers = dict(child.named_buffers())

    def of(parameters, x):
        return loss({**parameters, **buffers}, x)

    grads = torch.func.grad(of)(parameters, x)
    torch.testing.assert_close(grads, expected)
    of_each = torch.func.vmap(torch.func.grad(of), (None, 0))(parameters, x.unsqueeze(1))
    torch.testing.assert_close({name: g.mean(0) for name, g in of_each.items()}, expected)
    tangents = {name: torch.randn_like(p) for name, p in parameters.items()}
    _, slope = torch.func.jvp(lambda p: of(p, x), (parameters,), (tangents,))
    torch.testing.assert_close(slope, sum((grads[name] * tangents[name]).sum() for name in grads))


def test_forward_mode_differentiation():
    child, x = _child().double(), torch.randn(2, 8, 5, 5, dtype=torch.double)
    tangent, step = torch.randn_like(x), 1e-6
    with torch.autograd.forward_ad.dual_level():
        slope = torch.autograd.forward_ad.unpack_dual(child(torch.autograd.forward_ad.make_dual(x, tangent))).tangent
    expected = (child(x + step * tangent) - child(x - step * tangent)) / (2 * step)
    torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-7)


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
    y = (child if forward is None else forward)(x)
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
        lambda t: storages.setdefault(t.untyped_storage().data_ptr(), (t, t.untyped_storage().nbytes())) and t, lambda t: t
    ):
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


class _Net(nn.Module):
    """A parent and two children of it, of which one can be left out; everything in double precision."""

    def __init__(self, use_reentrant=None):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.parent = nn.Conv2d(8, 8, 3, padding=1)
        self.child = ChildConv2d(self.parent, padding=1, bias=True)
        self.side = ChildConv2d(self.parent, padding=2, dilation=2)
        self.use_reentrant = use_reentrant
        for child in (self.child, self.side):
            nn.init.normal_(child.filter_scale, std=0.3)
            nn.init.normal_(child.spatial_scale, std=0.3)
        self.double().eval()

    def forward(self, x, with_side=True):
        x = self.stem(x).sigmoid()
        y = self._run(self.child, x).sigmoid()
        return self.parent(y + self._run(self.side, x) if with_side else y)

    def _run(self, block, x):
        return block(x) if self.use_reentrant is None else checkpoint(block, x, use_reentrant=self.use_reentrant)


def _gradients_by_name(net, loss):
    loss.backward()
    return {name: parameter.grad for name, parameter in net.named_parameters()}


#: name -> how activations are kept, options of DistributedDataParallel, whether each of two processes takes the side branch
DISTRIBUTED = {
    'plain': (None, dict(), (True, True)),
    'gradients as views of the buckets': (None, dict(gradient_as_bucket_view=True), (True, True)),
    'find unused, all used': (None, dict(find_unused_parameters=True), (True, True)),
    'find unused, a child unused': (None, dict(find_unused_parameters=True), (False, False)),
    'find unused, a child unused in one process': (None, dict(find_unused_parameters=True), (True, False)),
    'checkpointed': (False, dict(), (True, True)),
    'checkpointed, find unused, a child unused in one process': (False, dict(find_unused_parameters=True), (True, False)),
    'checkpointed by the reentrant way': (True, dict(static_graph=True), (True, True)),
}


def _train_distributed(rank, folder):
    """One process of two: the gradients of every case after one backward pass over its half of the batch."""
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    dist.init_process_group('gloo', f'file://{folder}/rendezvous', rank=rank, world_size=2)
    state, halves = torch.load(folder / 'task.pt')
    gradients = {}
    for case, (use_reentrant, options, with_side) in DISTRIBUTED.items():
        net = _Net(use_reentrant)
        net.load_state_dict(state)
        ddp = nn.parallel.DistributedDataParallel(net, **options)
        loss = ddp(halves[rank], with_side[rank]).square().mean()
        gradients[case] = {key: grad if grad is None else grad.clone() for key, grad in _gradients_by_name(net, loss).items()}
    torch.save(gradients, folder / f'gradients{rank}.pt')
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def distributed(tmp_path_factory):
    """Weights, the two halves of a batch, and the gradients of both processes, which start once for all cases."""
    folder = tmp_path_factory.mktemp('distributed')
    torch.manual_seed(0)
    state, halves = _Net().state_dict(), torch.randn(2, 2, 3, 9, 7, dtype=torch.double)
    torch.save((state, halves), folder / 'task.pt')
    mp.spawn(_train_distributed, (folder,), nprocs=2)
    return state, halves, [torch.load(folder / f'gradients{rank}.pt') for rank in range(2)]


@pytest.mark.skipif(not dist.is_gloo_available(), reason='torch is built without gloo')
@pytest.mark.parametrize('case', DISTRIBUTED)
def test_distributed_gradients_are_those_of_one_process(distributed, case, monkeypatch):
    state, halves, gradients = distributed
    _force_plain(monkeypatch)
    net, with_side = _Net(), DISTRIBUTED[case][2]
    net.load_state_dict(state)
    if with_side[0] == with_side[1]:
        loss = net(halves.flatten(0, 1), with_side[0]).square().mean()
    else:
        loss = sum(net(half, side).square().mean() for half, side in zip(halves, with_side)) / 2
    expected = _gradients_by_name(net, loss)
    unused = {name for name, grad in expected.items() if grad is None}
    assert unused == ({name for name in expected if name.startswith('side.')} if not any(with_side) else set())
    assert all(grad.abs().max() > 0 for name, grad in expected.items() if name not in unused)
    for of_rank in gradients:
        assert {name for name, grad in of_rank[case].items() if grad is None} == unused
        for name in expected.keys() - unused:
            torch.testing.assert_close(of_rank[case][name], expected[name], rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.skipif(shutil.which(os.environ.get('CXX', 'g++')) is None, reason='torch.compile needs a C++ compiler')
def test_compiled_child_takes_the_plain_path_to_the_same_gradients(monkeypatch):
    child, x = _child(), torch.randn(2, 8, 6, 5)
    expected = _child_gradients(child, x)

    def refuse(*args):
        raise AssertionError('the recomputing convolution was taken')

    monkeypatch.setattr('mmkerneldna.layers.child_conv.gated_conv2d', refuse)
    with pytest.raises(AssertionError, match='was taken'):
        child(x)
    torch._dynamo.reset()
    _assert_all_close(_child_gradients(child, x, torch.compile(child, fullgraph=True)), expected, rtol=1e-4, atol=1e-5)

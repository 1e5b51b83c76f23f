"""Convolutions with kernels mixed from a bank: gradients against autograd's on the plain formula, and what they keep."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mmkerneldna.layers import mixture
from mmkerneldna.layers.mixture import bank_conv2d, mixture_conv2d
from mmkerneldna.layers.per_sample import per_sample_conv2d

STRATEGIES = ['loop', 'grouped', 'chunks', None]


def make(batch=3, n=2, dtype=torch.double, kernel=3, device='cpu'):
    torch.manual_seed(0)
    tensors = [
        torch.randn(shape, dtype=dtype, device=device, requires_grad=True)
        for shape in (
            (batch, 4, 6, 7),
            (batch, n),
            (n, 6, 4, kernel, kernel),
            (batch, 1, 1, kernel, kernel),
            (batch, 6, 4, 1, 1),
        )
    ]
    return tensors


def plain(x, attention, experts, *scales, **geometry):
    """The formula, differentiated by autograd: sample by sample, one expert after the other."""
    out = []
    for i in range(len(x)):
        kernel = sum(attention[i, j] * experts[j] for j in range(len(experts)))
        for scale in scales:
            kernel = kernel * scale[i]
        out.append(F.conv2d(x[i : i + 1], kernel, **geometry))
    return torch.cat(out)


def gradients(y, tensors, cotangent):
    wanted = [t for t in tensors if t.requires_grad]
    return torch.autograd.grad(y, wanted, cotangent)


def assert_same_gradients(y, expected, tensors):
    cotangent = torch.randn_like(expected)
    for ours, theirs in zip(gradients(y, tensors, cotangent), gradients(expected, tensors, cotangent)):
        torch.testing.assert_close(ours, theirs)


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 5),
    n=st.integers(1, 4),
    scales=st.integers(0, 2),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    kernel=st.sampled_from([1, 3]),
    strategy=st.sampled_from(STRATEGIES),
    limit=st.sampled_from([1, 400, 10**9]),
    frozen=st.sets(st.integers(0, 4), max_size=4),
)
def test_gradients_are_those_of_the_formula(batch, n, scales, stride, padding, dilation, kernel, strategy, limit, frozen):
    tensors = make(batch, n, kernel=kernel)[: 3 + scales]
    for i in frozen:
        if i < len(tensors):
            tensors[i].requires_grad_(False)
    if not any(t.requires_grad for t in tensors):
        tensors[0].requires_grad_(True)
    geometry = dict(stride=stride, padding=padding, dilation=dilation)
    expected = plain(*tensors, **geometry)
    cotangent = torch.randn_like(expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('mmkerneldna.layers.per_sample.CHUNK_ELEMENTS', limit)
        y = mixture_conv2d(*tensors[:3], **geometry, scales=tensors[3:], strategy=strategy)
        actual = gradients(y, tensors, cotangent)
    torch.testing.assert_close(y, expected)
    for ours, theirs in zip(actual, gradients(expected, tensors, cotangent)):
        torch.testing.assert_close(ours, theirs)


def test_gradcheck():
    x, attention, experts, spatial, channel = make(2, 2, kernel=2)
    function = lambda *t: mixture_conv2d(*t[:3], stride=2, padding=1, scales=t[3:])  # noqa: E731
    assert torch.autograd.gradcheck(function, (x, attention, experts, spatial, channel))


def test_second_derivative_is_that_of_the_formula():
    tensors = make(2, 2, kernel=2)
    function = lambda *t: mixture_conv2d(*t[:3], padding=1, scales=t[3:])  # noqa: E731

    def second(y):
        grads = torch.autograd.grad(y.pow(3).sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), tensors)

    torch.testing.assert_close(second(function(*tensors)), second(plain(*tensors, padding=1)))


def test_func_transforms():
    x, attention, experts, *scales = (t.detach() for t in make(3, 2))

    def loss(attention, x, *scales):
        return mixture_conv2d(x, attention, experts, padding=1, scales=scales).square().sum()

    expected = attention.clone().requires_grad_()
    loss(expected, x, *scales).backward()
    torch.testing.assert_close(torch.func.grad(loss)(attention, x, *scales), expected.grad)


@pytest.mark.parametrize('strategy', ['matmul', 'loop'])
@pytest.mark.parametrize('stride', [1, 2])
def test_pointwise_kernels(strategy, stride):
    tensors = make(kernel=1)[:3]
    expected = plain(*tensors, stride=stride)
    y = mixture_conv2d(*tensors, stride=stride, strategy=strategy)
    assert_same_gradients(y, expected, tensors)


def test_several_mixtures_per_sample():
    """Half of a kernel's input channels from each of two mixtures, as KernelWarehouse places cells."""
    torch.manual_seed(0)
    x = torch.randn(3, 4, 5, 5, dtype=torch.double, requires_grad=True)
    attention = torch.randn(3, 2, 3, dtype=torch.double, requires_grad=True)
    bank = torch.randn(3, 6 * 2 * 9, dtype=torch.double, requires_grad=True)

    def place(mixed):
        return mixed.view(-1, 2, 6, 2, 3, 3).transpose(1, 2).flatten(2, 3)

    kernels = torch.stack(
        [
            torch.cat([sum(attention[i, m, j] * bank[j] for j in range(3)).view(6, 2, 3, 3) for m in range(2)], dim=1)
            for i in range(3)
        ]
    )
    expected = torch.cat([F.conv2d(x[i : i + 1], kernels[i]) for i in range(3)])
    y = bank_conv2d(x, attention, bank, place, (6, 4, 3, 3))
    torch.testing.assert_close(y, expected)
    tensors = (x, attention, bank)
    assert_same_gradients(y, expected, tensors)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_channels_last_gradients(layout):
    x, attention, experts, *_ = make()
    expected = plain(x, attention, experts)
    laid = experts.flatten(0, 1).contiguous(memory_format=layout).unflatten(0, experts.shape[:2])
    y = mixture_conv2d(x.contiguous(memory_format=layout), attention, laid)
    assert y.is_contiguous(memory_format=layout)
    tensors = (x, attention, experts)
    assert_same_gradients(y, expected, tensors)


def test_under_autocast():
    tensors = make(dtype=torch.float)[:4]
    expected = plain(*tensors)
    cotangent = torch.randn_like(expected)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        y = mixture_conv2d(*tensors[:3], scales=tensors[3:])
    assert y.dtype == torch.bfloat16
    actual = gradients(y, tensors, cotangent.bfloat16())
    for ours, theirs in zip(actual, gradients(expected, tensors, cotangent)):
        assert ours.dtype == torch.float
        assert (ours - theirs).norm() < 0.03 * theirs.norm()


def test_kernels_are_not_kept():
    x, attention, experts, spatial, _ = make(batch=16)
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        y = mixture_conv2d(x, attention, experts, scales=[spatial])
    given_tensors = {t.untyped_storage().data_ptr() for t in (x, attention, experts, spatial)}
    assert y.requires_grad and set(kept) == given_tensors


@pytest.mark.parametrize('given', ['kernels', 'mixtures', 'mixtures without recomputation'])
def test_gradients_of_samples_are_not_filled_to_the_size_of_the_batch(monkeypatch, given):
    """As the gradient of a slice or an index is: for every sample a tensor of zeros of the size of the whole."""
    monkeypatch.setattr(mixture, 'can_recompute', lambda *args: given == 'mixtures')
    x, attention, experts, *_ = make(batch=8)
    if given == 'kernels':
        kernels = torch.randn(8, 6, 4, 3, 3, dtype=torch.double, requires_grad=True)
        y = per_sample_conv2d(x, kernels, strategy='loop')
    else:
        y = mixture_conv2d(x, attention, experts, strategy='loop')
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        y.square().sum().backward()
    names = [event.name for event in profile.events()]
    assert names.count('aten::convolution_backward') == 8
    assert names.count('aten::slice_backward') + names.count('aten::select_backward') <= 1


def test_plain_path_where_nothing_can_be_recomputed(monkeypatch):
    tensors = make()[:4]
    expected = plain(*tensors)
    monkeypatch.setattr(mixture, 'can_recompute', lambda *args: False)
    y = mixture_conv2d(*tensors[:3], scales=tensors[3:])
    assert type(y.grad_fn).__name__ != '_BankConv2dBackward'
    assert_same_gradients(y, expected, tensors)


def test_padding_by_name():
    tensors = make()[:3]
    expected = plain(*tensors, padding=1)
    y = mixture_conv2d(*tensors, padding='same')
    assert_same_gradients(y, expected, tensors)

"""Kernels given per sample, and mixtures of kernels, however they are computed, against a loop over the samples."""

import pytest
import torch
from conv_cases import conv_cases
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mmkerneldna.layers.mixture import mixture_conv2d
from mmkerneldna.layers.per_sample import PER_SAMPLE, per_sample_conv2d, select_per_sample


def usable(kernels, padding, batch):
    """The strategies that can do a case."""
    pointwise = kernels.shape[-2:] == (1, 1) and padding == 0
    return [name for name in PER_SAMPLE if (name != 'plain' or batch == 1) and (name != 'matmul' or pointwise)]


def make_tensors(case, num_experts=3):
    conv, (batch, in_channels, *_) = case['conv'], case['shape']
    kernel = conv['kernel_size'] if isinstance(conv['kernel_size'], tuple) else (conv['kernel_size'],) * 2
    x = torch.randn(case['shape'], dtype=torch.double, requires_grad=True)
    experts = torch.randn(num_experts, conv['out_channels'], in_channels // conv['groups'], *kernel, dtype=torch.double)
    attention = torch.randn(batch, num_experts, dtype=torch.double)
    bias = torch.randn(batch, conv['out_channels'], dtype=torch.double) if conv['bias'] else None
    return x, experts.requires_grad_(), attention.requires_grad_(), bias


def geometry(case):
    return {name: case['conv'][name] for name in ('stride', 'padding', 'dilation', 'groups')}


@settings(deadline=None, max_examples=60)
@given(case=conv_cases(), channels_last=st.booleans(), per_sample_bias=st.booleans())
def test_every_strategy_is_the_loop_over_samples(case, channels_last, per_sample_bias):
    x, experts, attention, bias = make_tensors(case)
    if bias is not None and not per_sample_bias:
        bias = bias[0]
    inputs = (x, experts, attention)
    kernels = torch.einsum('nk,koihw->noihw', attention, experts)
    expected = torch.cat([F.conv2d(sample[None], kernel, **geometry(case)) for sample, kernel in zip(x, kernels)])
    if bias is not None:
        expected = expected + bias.view(-1, expected.shape[1], 1, 1)
    cotangent = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, inputs, cotangent)
    given_x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    for strategy in [None, 'outputs', *usable(experts, case['conv']['padding'], len(x))]:
        y = mixture_conv2d(given_x, attention, experts, bias, **geometry(case), strategy=strategy)
        torch.testing.assert_close(y, expected, msg=lambda m: f'{strategy}: {m}')
        for ours, theirs in zip(torch.autograd.grad(y, inputs, cotangent), wanted):
            torch.testing.assert_close(ours, theirs, msg=lambda m: f'gradient of {strategy}: {m}')
        with torch.no_grad():  # kernels are mixed one by one then
            y = mixture_conv2d(given_x, attention, experts, bias, **geometry(case), strategy=strategy)
        torch.testing.assert_close(y, expected.detach(), msg=lambda m: f'{strategy} without gradients: {m}')


@settings(deadline=None, max_examples=20)
@given(case=conv_cases(), mixed=st.booleans())
def test_scales_multiply_the_kernels(case, mixed):
    x, experts, attention, _ = make_tensors(case, 3 if mixed else 1)
    before = experts.detach().clone()
    spatial = torch.rand(len(x), 1, 1, *experts.shape[-2:], dtype=torch.double)
    channel = torch.rand(len(x), *experts.shape[1:3], 1, 1, dtype=torch.double)
    kernels = torch.einsum('nk,koihw->noihw', attention if mixed else torch.ones_like(attention), experts)
    expected = per_sample_conv2d(x, kernels * spatial * channel, **geometry(case), strategy='loop')
    for strategy in usable(experts, case['conv']['padding'], len(x)):
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                y = mixture_conv2d(
                    x, attention if mixed else None, experts, scales=[spatial, channel], strategy=strategy, **geometry(case)
                )
            torch.testing.assert_close(y, expected)
    assert torch.equal(experts, before)


@pytest.mark.parametrize('limit', [1, 300, 700, 10**9])
@pytest.mark.parametrize('batch', [2, 5, 7])
def test_chunks_of_any_size(monkeypatch, limit, batch):
    monkeypatch.setattr('mmkerneldna.layers.per_sample.CHUNK_ELEMENTS', limit)
    x, attention, experts = torch.randn(batch, 4, 7, 7), torch.rand(batch, 2), torch.randn(2, 6, 4, 3, 3)
    expected = mixture_conv2d(x, attention, experts, strategy='loop')
    torch.testing.assert_close(mixture_conv2d(x, attention, experts, strategy='chunks'), expected)


def test_batch_of_one_is_one_plain_conv2d():
    x, kernel = torch.randn(1, 4, 6, 6), torch.randn(1, 8, 4, 3, 3)
    assert select_per_sample(x, kernel.shape[1:]) == 'plain'
    assert torch.equal(per_sample_conv2d(x, kernel, padding=1), F.conv2d(x, kernel[0], padding=1))


@pytest.mark.parametrize('layout, strategy', [(torch.contiguous_format, 'chunks'), (torch.channels_last, 'loop')])
def test_selection_on_the_cpu(layout, strategy):
    x = torch.empty(4, 16, 8, 8).contiguous(memory_format=layout)
    assert select_per_sample(x, (16, 16, 3, 3), padding=1) == strategy


@pytest.mark.parametrize('strategy', ['loop', 'grouped', 'chunks', 'matmul', 'outputs', None])
def test_memory_format_is_kept(strategy):
    x = torch.randn(3, 4, 8, 8).contiguous(memory_format=torch.channels_last)
    y = mixture_conv2d(x, torch.rand(3, 2), torch.randn(2, 6, 4, 1, 1), strategy=strategy)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('strategy', ['loop', 'grouped', 'chunks', 'matmul', 'outputs', None])
def test_follows_autocast(strategy):
    x, attention, experts = torch.randn(3, 4, 8, 8), torch.rand(3, 2), torch.randn(2, 6, 4, 1, 1)
    expected = mixture_conv2d(x, attention, experts, strategy=strategy)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        y = mixture_conv2d(x, attention, experts, strategy=strategy)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_empty_batch(layout):
    x = torch.empty(0, 4, 8, 8).contiguous(memory_format=layout).requires_grad_()
    experts = torch.randn(2, 6, 4, 3, 3, requires_grad=True)
    y = mixture_conv2d(x, torch.empty(0, 2), experts, padding=1)
    assert y.shape == (0, 6, 8, 8)
    y.sum().backward()
    assert not experts.grad.any()


def test_errors_name_what_is_wrong():
    x, experts = torch.randn(2, 4, 6, 6), torch.randn(3, 4, 4, 3, 3)
    with pytest.raises(ValueError, match='batch of 2'):
        per_sample_conv2d(x, experts)
    with pytest.raises(ValueError, match=r'shape \(2, 3\).*got \(2, 5\)'):
        mixture_conv2d(x, torch.rand(2, 5), experts)
    with pytest.raises(ValueError, match='3 experts, got None'):
        mixture_conv2d(x, None, experts)
    with pytest.raises(ValueError, match="unknown strategy 'fastest'"):
        mixture_conv2d(x, torch.rand(2, 3), experts, strategy='fastest')
    with pytest.raises(ValueError, match='for a batch of one, got 2'):
        mixture_conv2d(x, torch.rand(2, 3), experts, strategy='plain')
    with pytest.raises(ValueError, match='for 1x1 kernels'):
        mixture_conv2d(x, torch.rand(2, 3), experts, strategy='matmul')
    with pytest.raises(ValueError, match=r'kernels \(2, 4, 4, 3, 3\).*got \(2, 1, 1, 9, 1\)'):
        mixture_conv2d(x, torch.rand(2, 3), experts, scales=[torch.rand(2, 1, 1, 9, 1)])
    with pytest.raises(ValueError, match='no scales'):
        mixture_conv2d(x, torch.rand(2, 3), experts, scales=[torch.rand(2, 1, 1, 3, 3)], strategy='outputs')


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('kernel', [1, 3])
def test_strategies_agree_on_a_gpu(kernel):
    x, attention = torch.randn(4, 8, 9, 9, device='cuda'), torch.rand(4, 3, device='cuda')
    experts = torch.randn(3, 6, 8, kernel, kernel, device='cuda')
    expected = mixture_conv2d(x.cpu(), attention.cpu(), experts.cpu(), strategy='loop')
    for strategy in [None, 'outputs', *usable(experts, 0, 4)]:
        torch.testing.assert_close(
            mixture_conv2d(x, attention, experts, strategy=strategy).cpu(), expected, rtol=1e-2, atol=1e-2
        )

"""Convolutions whose kernel differs from sample to sample: the one place where every dynamic layer computes them.

Letters: N batch, C_in / C_out channels, g groups, k kernel side, n experts, H W input size.

Two functions are meant for the layers:

``per_sample_conv2d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1)``
    every sample has its own kernel, ``weight`` (N, C_out, C_in/g, k, k);
``mixture_conv2d(x, attention, experts, bias=None, stride=1, padding=0, dilation=1, groups=1, spatial=None)``
    the kernel of a sample is a mixture of n static ones, ``attention`` (N, n), ``experts`` (n, C_out, C_in/g, k, k).

Both give the same numbers whichever way they are computed, and pick the way (``select_per_sample``) that
``tools/benchmark_per_sample.py`` found to be the fastest:

============  ====================================================================  =======================
strategy      what it does                                                          exact for
============  ====================================================================  =======================
``plain``     one conv2d with the only kernel there is                              N = 1 (and N = 0)
``loop``      one conv2d per sample                                                 everything
``grouped``   folds the batch into the groups of one conv2d                         everything
``matmul``    a batched matrix product                                              1x1 kernels, no padding
``outputs``   convolves with all n experts and mixes the outputs                    mixtures
============  ====================================================================  =======================

All of them follow autocast (the kernel is cast with the input), return the memory format they were given, and take an
empty batch, which a RoI head may send.
"""
from typing import Optional, Sequence, Union

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = Union[int, Sequence[int]]
PaddingLike = Union[int, Sequence[int], str]

#: On the CPU one folded conv saves the calls of a loop while everything stays near the cache, then loses to it. With two
#: threads, grouped took 0.5 to 1.25 times as long as loop below 3 M elements (the largest of input, kernels and output;
#: depthwise gained most), and 0.95 to 4.8 times as long above.
GROUPED_MAX_ELEMENTS = 3_000_000


def per_sample_conv2d(x: Tensor,
                      weight: Tensor,
                      bias: Optional[Tensor] = None,
                      stride: Pair = 1,
                      padding: PaddingLike = 0,
                      dilation: Pair = 1,
                      groups: int = 1,
                      strategy: Optional[str] = None) -> Tensor:
    """Convolve every sample with its own kernel.

    Args:
        x: (N, C_in, H, W).
        weight: (N, C_out, C_in/groups, k, k).
        bias: None, (C_out,) or (N, C_out).
        stride, padding, dilation, groups: as in :func:`torch.nn.functional.conv2d`.
        strategy: one of ``PER_SAMPLE``; None lets ``select_per_sample`` choose.

    Returns:
        (N, C_out, H', W').

    Raises:
        ValueError: the batch of ``x`` and ``weight`` differ, or the strategy is unknown or cannot do this case.
    """
    if weight.dim() != 5 or weight.shape[0] != x.shape[0]:
        raise ValueError(f'per_sample_conv2d needs one kernel per sample: x has a batch of {x.shape[0]}, '
                         f'weight has the shape {tuple(weight.shape)}, expected ({x.shape[0]}, C_out, C_in/g, k, k)')
    if strategy is None:
        strategy = select_per_sample(x, weight, stride, padding, dilation, groups)
    compute = _lookup(PER_SAMPLE, strategy)
    y = compute(x, weight, stride=stride, padding=padding, dilation=dilation, groups=groups)
    return _add_bias(y, bias)


def mixture_conv2d(x: Tensor,
                   attention: Optional[Tensor],
                   experts: Tensor,
                   bias: Optional[Tensor] = None,
                   stride: Pair = 1,
                   padding: PaddingLike = 0,
                   dilation: Pair = 1,
                   groups: int = 1,
                   spatial: Optional[Tensor] = None,
                   strategy: Optional[str] = None) -> Tensor:
    """Convolve sample i with the kernel ``spatial[i] * sum_j attention[i, j] * experts[j]``.

    Args:
        x: (N, C_in, H, W).
        attention: (N, n) mixing weights; they need not sum to one. None for a single expert of weight one.
        experts: (n, C_out, C_in/groups, k, k).
        bias: None, (C_out,) or (N, C_out); not mixed here.
        stride, padding, dilation, groups: as in :func:`torch.nn.functional.conv2d`.
        spatial: None or (N, k, k), a factor per kernel position.
        strategy: ``'outputs'`` or one of ``PER_SAMPLE``; None lets ``select_per_sample`` choose.

    Returns:
        (N, C_out, H', W').

    Raises:
        ValueError: the shapes do not fit, or the strategy is unknown or cannot do this case.
    """
    _check_mixture(x, attention, experts, spatial)
    geometry = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    if attention is None and spatial is None:
        return _add_bias(F.conv2d(x, experts[0], **geometry), bias)
    if strategy is None:
        strategy = select_per_sample(x, experts, **geometry)
    if strategy == 'outputs':
        return _add_bias(_mix_outputs(x, attention, experts, spatial, **geometry), bias)
    if strategy == 'loop' and not torch.is_grad_enabled():
        return _add_bias(_mixing_loop(x, attention, experts, spatial, **geometry), bias)
    kernels = mix_kernels(attention, experts, spatial, len(x))
    return per_sample_conv2d(x, kernels, bias, strategy=strategy, **geometry)


def mix_kernels(attention: Optional[Tensor], experts: Tensor, spatial: Optional[Tensor], batch: int) -> Tensor:
    """Mix n kernels per sample: (N, n), (n, C_out, C_in/g, k, k), (N, k, k) -> (N, C_out, C_in/g, k, k).

    One matrix product. The broadcast form ``(attention * experts).sum(1)`` writes N * n kernels first: 1.2 GB for one
    512-channel layer with 4 experts at batch 32.
    """
    if attention is None:
        kernels = experts.expand(batch, *experts.shape[1:])
    else:
        kernels = _mix(attention.to(experts.dtype), experts)
    return kernels if spatial is None else kernels * spatial.to(kernels.dtype)[:, None, None]


def _mix(attention, experts):
    last = experts.permute(0, 1, 3, 4, 2)
    if last.is_contiguous() and not experts.is_contiguous():  # channels_last: mixed as they lie in memory
        return torch.mm(attention, last.flatten(1)).unflatten(1, last.shape[1:]).permute(0, 1, 4, 2, 3)
    return torch.mm(attention, experts.flatten(1)).unflatten(1, experts.shape[1:])


def select_per_sample(x: Tensor, weight: Tensor, stride: Pair = 1, padding: PaddingLike = 0, dilation: Pair = 1,
                      groups: int = 1) -> str:
    """Name the strategy for kernels of the shape ``weight[0]`` that differ from sample to sample.

    No rule picks ``outputs``: of all shapes measured it won only at 512 channels on 7x7 maps, by a fifth, and it holds
    n times the activations.
    """
    if x.shape[0] <= 1:
        return 'plain'
    if x.is_cuda:
        # Not measured on a GPU: one launch for the batch instead of N; a batched product where the kernel is a matrix,
        # because cuDNN's grouped kernels are written for depthwise and ResNeXt shapes, not for wide 1x1 groups.
        return 'matmul' if _is_pointwise(weight, padding) and groups == 1 else 'grouped'
    batch, height, width = x.shape[0], x.shape[2], x.shape[3]
    outputs = batch * weight.shape[1] * height * width // (_pair(stride)[0] * _pair(stride)[1])
    largest = max(x.numel(), batch * weight.shape[1:].numel(), outputs)
    # a folded batch has to leave channels_last and come back
    return 'loop' if _is_channels_last(x) or largest > GROUPED_MAX_ELEMENTS else 'grouped'


def _check_mixture(x, attention, experts, spatial):
    wanted = (x.shape[0], experts.shape[0])
    if attention is None and experts.shape[0] != 1:
        raise ValueError(f'mixture_conv2d needs an attention for {experts.shape[0]} experts, got None')
    if attention is not None and tuple(attention.shape) != wanted:
        raise ValueError(f'mixture_conv2d needs an attention of shape {wanted} (batch, experts), '
                         f'got {tuple(attention.shape)}')
    if spatial is not None and spatial.shape != (x.shape[0], *experts.shape[-2:]):
        raise ValueError(f'mixture_conv2d needs a spatial factor of shape {(x.shape[0], *experts.shape[-2:])} '
                         f'(batch, kernel), got {tuple(spatial.shape)}')


def _plain(x, weight, **geometry):
    if x.shape[0] > 1:
        raise ValueError(f"strategy 'plain' is for a batch of one, got {x.shape[0]}; use 'loop' or 'grouped'")
    # an empty batch still needs a kernel, for the shape of what comes out
    return F.conv2d(x, weight[0] if len(weight) else weight.sum(0), **geometry)


def _loop(x, weight, **geometry):
    # split, not x[i]: the pieces keep their batch dimension and so their memory format
    return torch.cat([F.conv2d(sample, kernel, **geometry) for sample, kernel in zip(x.split(1), weight)])


def _mixing_loop(x, attention, experts, spatial, **geometry):
    # Each kernel is mixed when it is needed: at 512 channels and batch 32 that halves the time, for the N kernels
    # together are 300 MB of fresh memory. For training the gradient of one big product is the cheaper one.
    def kernel(i):
        at = slice(i, i + 1)
        return mix_kernels(None if attention is None else attention[at], experts,
                           None if spatial is None else spatial[at], 1)[0]

    return torch.cat([F.conv2d(sample, kernel(i), **geometry) for i, sample in enumerate(x.split(1))])


def _grouped(x, weight, groups, **geometry):
    batch, channels, height, width = x.shape
    y = F.conv2d(x.reshape(1, batch * channels, height, width), weight.flatten(0, 1), groups=batch * groups, **geometry)
    y = y.view(batch, -1, *y.shape[-2:])
    return y.contiguous(memory_format=torch.channels_last) if _is_channels_last(x) else y


def _matmul(x, weight, stride, padding, dilation, groups):
    if not _is_pointwise(weight, padding):
        raise ValueError(f"strategy 'matmul' is for 1x1 kernels without padding, got a kernel of "
                         f"{tuple(weight.shape[-2:])} with padding {padding}; use 'loop' or 'grouped'")
    step_h, step_w = _pair(stride)
    x = x[:, :, ::step_h, ::step_w]
    batch, channels, height, width = x.shape
    kernel = weight.reshape(batch * groups, -1, channels // groups)
    if _is_channels_last(x) and groups == 1:
        # (N, HW, C) is how the pixels lie in memory: no copy of x, and the output is channels_last again
        y = torch.bmm(x.permute(0, 2, 3, 1).reshape(batch, height * width, channels), kernel.transpose(1, 2))
        return y.view(batch, height, width, -1).permute(0, 3, 1, 2)
    y = torch.bmm(kernel, x.reshape(batch * groups, channels // groups, height * width))
    return y.view(batch, -1, height, width)


def _mix_outputs(x, attention, experts, spatial, **geometry):
    if spatial is not None or attention is None:
        raise ValueError("strategy 'outputs' mixes outputs of static kernels: it needs an attention and no spatial factor")
    parts = (F.conv2d(x, kernel, **geometry) for kernel in experts)
    return sum(part * weight.to(part.dtype)[:, None, None, None] for part, weight in zip(parts, attention.t()))


#: the strategies that take a kernel per sample
PER_SAMPLE = dict(plain=_plain, loop=_loop, grouped=_grouped, matmul=_matmul)


def _lookup(table, strategy):
    if strategy not in table:
        raise ValueError(f'unknown strategy {strategy!r}; expected one of {sorted(table)}')
    return table[strategy]


def _add_bias(y, bias):
    if bias is None:
        return y
    return y + bias.to(y.dtype).view(-1, y.shape[1], 1, 1)


def _is_pointwise(weight, padding):
    return tuple(weight.shape[-2:]) == (1, 1) and padding in (0, (0, 0), [0, 0], 'valid', 'same')


def _is_channels_last(x):
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)

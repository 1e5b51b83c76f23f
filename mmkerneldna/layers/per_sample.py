"""Convolutions whose kernel differs from sample to sample: the one place where every dynamic layer computes them.

Letters: N batch, C_in / C_out channels, g groups, k kernel side, n experts, H W input size.

Two functions are meant for the layers:

``per_sample_conv2d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1)``
    every sample has its own kernel, ``weight`` (N, C_out, C_in/g, k, k);
``mixture_conv2d(x, attention, experts, bias=None, stride=1, padding=0, dilation=1, groups=1, scales=())``
    the kernel of a sample is a mixture of n static ones, ``attention`` (N, n), ``experts`` (n, C_out, C_in/g, k, k).

Both give the same numbers whichever way they are computed, and pick the way (``select_per_sample``) that
``tools/benchmark_per_sample.py`` found to be the fastest:

============  ====================================================================  =======================
strategy      what it does                                                          exact for
============  ====================================================================  =======================
``plain``     one conv2d with the only kernel there is                              N = 1 (and N = 0)
``loop``      one conv2d per sample                                                 everything
``grouped``   folds the batch into the groups of one conv2d                         everything
``chunks``    folds as many samples at a time as stay near the cache                everything
``matmul``    a batched matrix product                                              1x1 kernels, no padding
``outputs``   convolves with all n experts and mixes the outputs                    mixtures without scales
============  ====================================================================  =======================

All of them follow autocast (the kernel is cast with the input), return the memory format they were given, and take an
empty batch, which a RoI head may send.
"""
from typing import Callable, Optional, Sequence, Union

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = Union[int, Sequence[int]]
PaddingLike = Union[int, Sequence[int], str]

#: Elements (the largest of input, kernels and output) that one folded conv may have on the CPU. Folding saves calls while
#: all of it stays near the cache (8 samples of a depthwise layer took 0.3 of a loop's time) and loses beyond (64 channels
#: at 56x56, batch 32: 1.8 times). Of the limits from 0.3 to 6 million this one was the best over ResNet and depthwise
#: shapes, 1.13 times the best limit of each shape; a plain loop took 1.49 times.
CHUNK_ELEMENTS = 3_000_000

PER_SAMPLE = ('plain', 'loop', 'grouped', 'chunks', 'matmul')


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
    geometry = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    if strategy is None:
        strategy = select_per_sample(x, weight, **geometry)
    return _add_bias(_compute(strategy, x, weight, weight.__getitem__, geometry), bias)


def mixture_conv2d(x: Tensor,
                   attention: Optional[Tensor],
                   experts: Tensor,
                   bias: Optional[Tensor] = None,
                   stride: Pair = 1,
                   padding: PaddingLike = 0,
                   dilation: Pair = 1,
                   groups: int = 1,
                   scales: Sequence[Tensor] = (),
                   strategy: Optional[str] = None) -> Tensor:
    """Convolve sample i with the kernel ``sum_j attention[i, j] * experts[j]``, times each of ``scales[...][i]``.

    Args:
        x: (N, C_in, H, W).
        attention: (N, n) mixing weights; they need not sum to one. None for a single expert of weight one.
        experts: (n, C_out, C_in/groups, k, k).
        bias: None, (C_out,) or (N, C_out); not mixed here.
        stride, padding, dilation, groups: as in :func:`torch.nn.functional.conv2d`.
        scales: factors of the mixed kernels, each of five axes that broadcast to (N, C_out, C_in/groups, k, k).
        strategy: ``'outputs'`` or one of ``PER_SAMPLE``; None lets ``select_per_sample`` choose.

    Returns:
        (N, C_out, H', W').

    Raises:
        ValueError: the shapes do not fit, or the strategy is unknown or cannot do this case.
    """
    _check_mixture(x, attention, experts, scales)
    geometry = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    if attention is None and not scales:
        return _add_bias(F.conv2d(x, experts[0], **geometry), bias)
    if strategy is None:
        strategy = select_per_sample(x, experts, **geometry)
    if strategy == 'outputs':
        return _add_bias(_mix_outputs(x, attention, experts, scales, geometry), bias)

    def kernels(part: slice) -> Tensor:
        return mix_kernels(None if attention is None else attention[part], experts, [scale[part] for scale in scales])

    if torch.is_grad_enabled():
        # One big product has one big gradient; by parts, each part would have one of the size of all experts.
        kernels = kernels(slice(None)).__getitem__
    # Otherwise the kernels of a part are mixed when it is their turn: at 512 channels and batch 32 that halves the
    # time, for together they are 300 MB of fresh memory.
    return _add_bias(_compute(strategy, x, experts, kernels, geometry), bias)


def mix_kernels(attention: Optional[Tensor], experts: Tensor, scales: Sequence[Tensor] = ()) -> Tensor:
    """Mix n kernels per sample: (N, n), (n, C_out, C_in/g, k, k), scales -> (N, C_out, C_in/g, k, k).

    One matrix product. The broadcast form ``(attention * experts).sum(1)`` writes N * n kernels first: 1.2 GB for one
    512-channel layer with 4 experts at batch 32.
    """
    kernels = experts if attention is None else _mix(attention.to(experts.dtype), experts)
    fresh = attention is not None and not torch.is_grad_enabled()
    for scale in scales:
        scale = scale.to(kernels.dtype)
        kernels = kernels.mul_(scale) if fresh else kernels * scale
        fresh = not torch.is_grad_enabled()
    return kernels


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
    # a folded batch has to leave channels_last and come back
    return 'loop' if _is_channels_last(x) else 'chunks'


def _compute(strategy: str, x: Tensor, like: Tensor, kernels: Callable[[slice], Tensor], geometry: dict) -> Tensor:
    """Convolve part by part; ``kernels`` gives those of a part, ``like`` has their shape from axis 1 on."""
    batch = x.shape[0]
    if strategy == 'matmul':
        return _matmul(x, kernels(slice(None)), **geometry)
    if strategy == 'plain' and batch > 1:
        raise ValueError(f"strategy 'plain' is for a batch of one, got {batch}; use 'loop' or 'grouped'")
    if strategy not in PER_SAMPLE:
        raise ValueError(f'unknown strategy {strategy!r}; expected one of {PER_SAMPLE}')
    if batch == 0:  # still needs a kernel, for the shape of what comes out
        return F.conv2d(x, kernels(slice(None)).sum(0), **geometry)
    step = dict(plain=1, loop=1, grouped=batch).get(strategy) or _chunk(x, like, geometry['stride'])
    parts = [_folded(x[i:i + step], kernels(slice(i, i + step)), **geometry) for i in range(0, batch, step)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _chunk(x: Tensor, like: Tensor, stride: Pair) -> int:
    (step_h, step_w), out_channels = _pair(stride), like.shape[1]
    outputs = out_channels * x.shape[2] * x.shape[3] // (step_h * step_w)
    chunk = max(1, CHUNK_ELEMENTS // max(x[0].numel(), like[0].numel(), outputs))
    return -(-x.shape[0] // -(-x.shape[0] // chunk))  # equal parts


def _folded(x, weight, groups, **geometry):
    batch, channels, height, width = x.shape
    if batch == 1:
        return F.conv2d(x, weight[0], groups=groups, **geometry)
    y = F.conv2d(x.reshape(1, batch * channels, height, width), weight.flatten(0, 1), groups=batch * groups, **geometry)
    y = y.view(batch, -1, *y.shape[-2:])
    return y.contiguous(memory_format=torch.channels_last) if _is_channels_last(x) else y


def _matmul(x, weight, stride, padding, dilation, groups):
    if not _is_pointwise(weight, padding):
        raise ValueError(f"strategy 'matmul' is for 1x1 kernels without padding, got a kernel of "
                         f"{tuple(weight.shape[-2:])} with padding {padding}; use 'loop' or 'grouped'")
    step_h, step_w = _pair(stride)
    channels_last = _is_channels_last(x) and groups == 1
    x = x[:, :, ::step_h, ::step_w]
    batch, channels, height, width = x.shape
    kernel = weight.reshape(batch * groups, -1, channels // groups)
    if channels_last:
        # (N, HW, C) is how the pixels lie in memory: no copy of x, and the output is channels_last again
        y = torch.bmm(x.permute(0, 2, 3, 1).reshape(batch, height * width, channels), kernel.transpose(1, 2))
        return y.view(batch, height, width, -1).permute(0, 3, 1, 2)
    y = torch.bmm(kernel, x.reshape(batch * groups, channels // groups, height * width))
    return y.view(batch, -1, height, width)


def _mix_outputs(x, attention, experts, scales, geometry):
    if scales or attention is None:
        raise ValueError("strategy 'outputs' mixes outputs of static kernels: it needs an attention and no scales")
    parts = (F.conv2d(x, kernel, **geometry) for kernel in experts)
    return sum(part * weight.to(part.dtype)[:, None, None, None] for part, weight in zip(parts, attention.t()))


def _mix(attention, experts):
    last = experts.permute(0, 1, 3, 4, 2)
    if last.is_contiguous() and not experts.is_contiguous():  # channels_last: mixed as they lie in memory
        return torch.mm(attention, last.flatten(1)).unflatten(1, last.shape[1:]).permute(0, 1, 4, 2, 3)
    return torch.mm(attention, experts.flatten(1)).unflatten(1, experts.shape[1:])


def _check_mixture(x, attention, experts, scales):
    wanted = (x.shape[0], experts.shape[0])
    if attention is None and experts.shape[0] != 1:
        raise ValueError(f'mixture_conv2d needs an attention for {experts.shape[0]} experts, got None')
    if attention is not None and tuple(attention.shape) != wanted:
        raise ValueError(f'mixture_conv2d needs an attention of shape {wanted} (batch, experts), '
                         f'got {tuple(attention.shape)}')
    full = (x.shape[0], *experts.shape[1:])
    for scale in scales:
        if scale.dim() != 5 or any(size not in (1, whole) for size, whole in zip(scale.shape[1:], full[1:])) \
                or scale.shape[0] != full[0]:
            raise ValueError(f'mixture_conv2d needs scales that broadcast to the kernels {full} and have the batch '
                             f'{full[0]}, got {tuple(scale.shape)}')


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

"""Convolutions whose kernel differs from sample to sample: the one place where every dynamic layer computes them.

Letters: N batch, C_in / C_out channels, g groups, k kernel side, H W input size.

``per_sample_conv2d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1)`` takes one kernel per sample; layers that
mix theirs from a bank go through :mod:`.mixture`. Every way of computing gives the same numbers; ``select_per_sample`` picks
the one that ``tools/benchmark_per_sample.py`` found to be the fastest:

============  ====================================================================  =======================
strategy      what it does                                                          exact for
============  ====================================================================  =======================
``plain``     one conv2d with the only kernel there is                              N = 1 (and N = 0)
``loop``      one conv2d per sample                                                 everything
``grouped``   folds the batch into the groups of one conv2d                         everything
``chunks``    folds as many samples at a time as stay near the cache                everything
``matmul``    a batched matrix product                                              1x1 kernels, no padding
============  ====================================================================  =======================

All of them follow autocast (the kernel is cast with the input), return the memory format they were given, and take an
empty batch, which a RoI head may send.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .drop_in import in_format_of, is_channels_last

Pair = int | Sequence[int]
PaddingLike = int | Sequence[int] | str

#: Elements (the largest of input, kernels and output) that one folded conv may have on the CPU. Folding saves calls while
#: all of it stays near the cache (8 samples of a depthwise layer took 0.3 of a loop's time) and loses beyond (64 channels
#: at 56x56, batch 32: 1.8 times). Of the limits from 0.3 to 6 million this one was the best over ResNet and depthwise
#: shapes, 1.13 times the best limit of each shape; a plain loop took 1.49 times.
CHUNK_ELEMENTS = 3_000_000

PER_SAMPLE = ('plain', 'loop', 'grouped', 'chunks', 'matmul')


def per_sample_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: PaddingLike = 0,
    dilation: Pair = 1,
    groups: int = 1,
    strategy: str | None = None,
) -> Tensor:
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
        raise ValueError(
            f'per_sample_conv2d needs one kernel per sample: x has a batch of {x.shape[0]}, '
            f'weight has the shape {tuple(weight.shape)}, expected ({x.shape[0]}, C_out, C_in/g, k, k)'
        )
    return assembled_conv2d(x, weight.shape[1:], weight.__getitem__, bias, stride, padding, dilation, groups, strategy)


def assembled_conv2d(
    x: Tensor,
    kernel_shape: Sequence[int],
    assemble: Callable[[slice], Tensor],
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: PaddingLike = 0,
    dilation: Pair = 1,
    groups: int = 1,
    strategy: str | None = None,
) -> Tensor:
    """Convolve each sample with the kernel that ``assemble`` makes for it.

    Without gradients the kernels of a part of the batch are made when it is their turn: together they are fresh memory
    (300 MB at 512 channels and batch 32), and making them all first took twice the time.

    Args:
        x: (N, C_in, H, W).
        kernel_shape: (C_out, C_in/groups, k, k).
        assemble: from a slice of the batch to its kernels, (n, *kernel_shape).
        bias, stride, padding, dilation, groups, strategy: as in :func:`per_sample_conv2d`.

    Returns:
        (N, C_out, H', W').
    """
    geometry: dict[str, Any] = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    strategy = check_strategy(strategy, x, kernel_shape, **geometry)
    if not len(x):  # still needs a kernel, for the shape of what comes out and a gradient of zeros
        return add_bias(F.conv2d(x, assemble(slice(None)).sum(0), **geometry), bias)
    step = part_size(strategy, x, kernel_shape, stride)
    if torch.is_grad_enabled():
        # Split, not sliced: the gradient of each slice would be a tensor of the size of the whole.
        parts: Iterable[tuple[Tensor, Tensor]] = zip(x.split(step), assemble(slice(None)).split(step))
    else:
        parts = ((x[part], assemble(part)) for part in parts_of(len(x), step))
    return add_bias(join([convolve_part(strategy, *part, **geometry) for part in parts]), bias)


def select_per_sample(
    x: Tensor, kernel_shape: Sequence[int], stride: Pair = 1, padding: PaddingLike = 0, dilation: Pair = 1, groups: int = 1
) -> str:
    """Name the strategy for kernels of ``kernel_shape``, (C_out, C_in/g, k, k), that differ from sample to sample."""
    if x.shape[0] <= 1:
        return 'plain'
    if x.is_cuda:
        # Not measured on a GPU: one launch for the batch instead of N; a batched product where the kernel is a matrix,
        # because cuDNN's grouped kernels are written for depthwise and ResNeXt shapes, not for wide 1x1 groups.
        return 'matmul' if _is_pointwise(kernel_shape, padding) and groups == 1 else 'grouped'
    # a folded batch has to leave channels_last and come back
    return 'loop' if is_channels_last(x) else 'chunks'


def check_strategy(
    strategy: str | None,
    x: Tensor,
    kernel_shape: Sequence[int],
    stride: Pair,
    padding: PaddingLike,
    dilation: Pair,
    groups: int,
) -> str:
    """``strategy``, or the selected one for None; ValueError where it is unknown or cannot do this case."""
    if strategy is None:
        return select_per_sample(x, kernel_shape, stride, padding, dilation, groups)
    if strategy not in PER_SAMPLE:
        raise ValueError(f'unknown strategy {strategy!r}; expected one of {PER_SAMPLE}')
    if strategy == 'plain' and len(x) > 1:
        raise ValueError(f"strategy 'plain' is for a batch of one, got {len(x)}; use 'loop' or 'grouped'")
    if strategy == 'matmul' and not _is_pointwise(kernel_shape, padding):
        raise ValueError(
            f"strategy 'matmul' is for 1x1 kernels without padding, got a kernel of "
            f"{tuple(kernel_shape[-2:])} with padding {padding}; use 'loop' or 'grouped'"
        )
    return strategy


def part_size(strategy: str, x: Tensor, kernel_shape: Sequence[int], stride: Pair) -> int:
    """Samples that are convolved in one call."""
    batch = len(x)
    if strategy != 'chunks':
        return 1 if strategy in ('plain', 'loop') else batch
    (step_h, step_w), out_channels = pair(stride), kernel_shape[0]
    outputs = out_channels * x.shape[2] * x.shape[3] // (step_h * step_w)
    chunk = max(1, CHUNK_ELEMENTS // max(x[0].numel(), math.prod(kernel_shape), outputs))
    return -(-batch // -(-batch // chunk))  # equal parts


def parts_of(batch: int, step: int) -> list[slice]:
    """The batch cut into slices of ``step`` samples."""
    return [slice(i, min(i + step, batch)) for i in range(0, batch, step)]


def convolve_part(
    strategy: str, x: Tensor, weight: Tensor, stride: Pair, padding: PaddingLike, dilation: Pair, groups: int
) -> Tensor:
    """All samples of a part at once: (n, C_in, H, W), (n, C_out, C_in/g, k, k) -> (n, C_out, H', W')."""
    batch, channels, height, width = x.shape
    if strategy == 'matmul':
        return _matmul(x, weight, stride, groups)
    if batch == 1:
        return F.conv2d(x, weight.squeeze(0), None, stride, padding, dilation, groups)
    y = F.conv2d(
        x.reshape(1, batch * channels, height, width), weight.flatten(0, 1), None, stride, padding, dilation, batch * groups
    )
    y = y.view(batch, -1, *y.shape[-2:])
    return in_format_of(x, y)


def part_gradients(
    strategy: str,
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of :func:`convolve_part` by x and weight; None for the one that is not needed. Padding is a number here."""
    batch, channels, height, width = x.shape
    if strategy == 'matmul':
        return _matmul_gradients(grad, x, weight, stride, groups, need_x, need_weight)
    if batch > 1:
        grad, x_folded = grad.flatten(0, 1).unsqueeze(0), x.reshape(1, batch * channels, height, width)
    else:
        x_folded = x
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad,
        x_folded,
        weight.flatten(0, 1),
        None,
        pair(stride),
        pair(padding),
        pair(dilation),
        False,
        [0, 0],
        batch * groups,
        [need_x, need_weight, False],
    )
    return None if grad_x is None else grad_x.view_as(x), None if grad_weight is None else grad_weight.view(weight.shape)


def _matmul(x, weight, stride, groups):
    step_h, step_w = pair(stride)
    channels_last = is_channels_last(x) and groups == 1
    x = x[:, :, ::step_h, ::step_w]
    batch, channels, height, width = x.shape
    kernel = weight.reshape(batch * groups, -1, channels // groups)
    if channels_last:
        # (N, HW, C) is how the pixels lie in memory: no copy of x, and the output is channels_last again
        y = torch.bmm(x.permute(0, 2, 3, 1).reshape(batch, height * width, channels), kernel.transpose(1, 2))
        return y.view(batch, height, width, -1).permute(0, 3, 1, 2)
    y = torch.bmm(kernel, x.reshape(batch * groups, channels // groups, height * width))
    return y.view(batch, -1, height, width)


def _matmul_gradients(grad, x, weight, stride, groups, need_x, need_weight):
    step_h, step_w = pair(stride)
    rows = grad.reshape(len(x) * groups, -1, grad.shape[2] * grad.shape[3])
    grad_x = grad_weight = None
    if need_x:
        seen = torch.bmm(weight.reshape(len(rows), rows.shape[1], -1).transpose(1, 2), rows)
        seen = seen.view(*x.shape[:2], *grad.shape[2:])
        grad_x = seen if (step_h, step_w) == (1, 1) else torch.zeros_like(x)
        if grad_x is not seen:
            grad_x[:, :, ::step_h, ::step_w] = seen
    if need_weight:
        pixels = x[:, :, ::step_h, ::step_w].reshape(len(rows), -1, rows.shape[2])
        grad_weight = torch.bmm(rows, pixels.transpose(1, 2)).view(weight.shape)
    return grad_x, grad_weight


def join(parts: list[Tensor]) -> Tensor:
    """The parts of a batch as one; a single part is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def add_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    """``bias``: None, (C_out,) or (N, C_out)."""
    if bias is None:
        return y
    return y + bias.to(y.dtype).view(-1, y.shape[1], 1, 1)


def pair(value: Pair) -> tuple[int, int]:
    """A number for both axes, or one for each."""
    if isinstance(value, int):
        return value, value
    first, second = value
    return first, second


def _is_pointwise(kernel_shape, padding):
    return tuple(kernel_shape[-2:]) == (1, 1) and padding in (0, (0, 0), [0, 0], 'valid', 'same')

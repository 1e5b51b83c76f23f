"""Convolve with kernels that a layer assembles per sample, a few samples at a time where no gradient needs them."""
from typing import Callable

import torch
from torch import Tensor, nn

from .expert_conv import pad_for_mode
from .per_sample import per_sample_conv2d

#: Kernels held at once, in elements (64 MB in fp32): fresh memory for those of a batch of 32 costs more than filling it.
CHUNK_ELEMENTS = 2**24


def convolve_assembled(layer: nn.Module, x: Tensor, assemble: Callable[[slice], Tensor]) -> Tensor:
    """Convolve each sample of ``x`` with its own kernel.

    Args:
        layer: has the geometry of a Conv2d and its ``bias``.
        x: (N, C_in, H, W).
        assemble: from a slice of the batch to its kernels, (n, C_out, C_in/g, k, k).

    Returns:
        (N, C_out, H', W').
    """
    x, padding = pad_for_mode(layer, x)
    geometry = (layer.bias, layer.stride, padding, layer.dilation, layer.groups)
    elements = layer.out_channels * layer.in_channels // layer.groups * layer.kernel_size[0] * layer.kernel_size[1]
    chunk = max(1, CHUNK_ELEMENTS // elements)
    if len(x) <= chunk or torch.is_grad_enabled() or x.is_cuda:
        return per_sample_conv2d(x, assemble(slice(None)), *geometry)
    parts = (slice(i, i + chunk) for i in range(0, len(x), chunk))
    return torch.cat([per_sample_conv2d(x[part], assemble(part), *geometry) for part in parts])


def copy_geometry(layer: nn.Module, conv: nn.Conv2d) -> None:
    """Give ``layer``, which is no ``nn.Conv2d``, what upstream code (mmcv's ConvModule for one) asks a convolution for."""
    for name in ('in_channels', 'out_channels', 'kernel_size', 'stride', 'padding', 'dilation', 'groups', 'padding_mode',
                 'transposed', 'output_padding', '_reversed_padding_repeated_twice'):
        setattr(layer, name, getattr(conv, name))


def in_format_of(x: Tensor, y: Tensor) -> Tensor:
    """``y`` as channels_last where ``x`` is."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return y.contiguous(memory_format=torch.channels_last) if channels_last else y


def at_least_fp32(x: Tensor) -> Tensor:
    """Leave fp32 and fp64 as they are, lift half precision: for sums and transforms under autocast."""
    return x.to(torch.promote_types(x.dtype, torch.float32))

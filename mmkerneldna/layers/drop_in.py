"""What layers that are no ``nn.Conv2d`` need to stand in for one."""

from typing import Literal

import torch
from torch import Tensor, nn

PaddingMode = Literal['zeros', 'reflect', 'replicate', 'circular']


def copy_geometry(layer: nn.Module, conv: nn.Conv2d) -> None:
    """Give ``layer``, which is no ``nn.Conv2d``, what upstream code (mmcv's ConvModule for one) asks a convolution for."""
    for name in (
        'in_channels',
        'out_channels',
        'kernel_size',
        'stride',
        'padding',
        'dilation',
        'groups',
        'padding_mode',
        'transposed',
        'output_padding',
        '_reversed_padding_repeated_twice',
    ):
        setattr(layer, name, getattr(conv, name))


def in_format_of(x: Tensor, y: Tensor) -> Tensor:
    """``y`` as channels_last where ``x`` is."""
    return y.contiguous(memory_format=torch.channels_last) if is_channels_last(x) else y


def is_channels_last(x: Tensor) -> bool:
    """Whether ``x`` lies in memory as channels_last and in no other way."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def at_least_fp32(x: Tensor) -> Tensor:
    """Leave fp32 and fp64 as they are, lift half precision: for sums and transforms under autocast."""
    return x.to(torch.promote_types(x.dtype, torch.float32))

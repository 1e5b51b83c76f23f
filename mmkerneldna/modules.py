"""Module surgery and counting, for every part of the package that takes a net apart."""

from typing import Any, TypeGuard

import torch
from mmcv.cnn.bricks.wrappers import Conv2d as EmptySafeConv2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

# Types, not isinstance: a subclass with a forward of its own (deformable, weight-standardised, dynamic, child) is more.
PLAIN_CONVS = (nn.Conv2d, EmptySafeConv2d)

Slot = tuple[nn.Module, str, nn.Module]


def is_plain_conv(module: nn.Module | None) -> TypeGuard[nn.Conv2d]:
    """Whether ``module`` computes conv2d(x, weight, bias) with its own attributes: it may share or be swapped or folded."""
    return type(module) in PLAIN_CONVS


def slots(module: nn.Module) -> list[Slot]:
    """(owner, attribute, submodule) of every place where a submodule hangs; a shared one appears once per place."""
    return [(owner, name, child) for owner in module.modules() for name, child in owner._modules.items() if child is not None]


def running_stats(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Running mean and variance, (C,) each, of a BatchNorm that tracks them."""
    assert norm.running_mean is not None and norm.running_var is not None
    return norm.running_mean, norm.running_var


def to_memory_format(module: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    """Lay out all 4-dimensional parameters and buffers of ``module``, in place; returns it."""
    return module.to(memory_format=memory_format)  # type: ignore[call-overload]  # torch's overloads leave this one out


def conv_arguments(conv: nn.Conv2d) -> dict[str, Any]:
    """The arguments of ``nn.Conv2d`` that make another of this geometry."""
    return dict(
        in_channels=conv.in_channels,
        out_channels=conv.out_channels,
        kernel_size=conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
    )


def replace(module: nn.Module, old: nn.Module, new: nn.Module) -> int:
    """Put ``new`` into every place below ``module`` where ``old`` hangs: a head may use one conv under several names.

    Returns:
        int: places filled.
    """
    places = [(owner, name) for owner, name, child in slots(module) if child is old]
    for owner, name in places:
        owner._modules[name] = new
    return len(places)


def count_parameters(module: nn.Module) -> int:
    """Elements of all parameters of ``module``, each ``Parameter`` once."""
    return sum(p.numel() for p in module.parameters())

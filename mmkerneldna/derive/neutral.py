"""Input gates that start without a say: g = sigmoid(b) whatever the input, and its inverse in the kernel."""

import torch
from mmengine.model import constant_init
from torch import Tensor

from ..layers import ChildConv2d


@torch.no_grad()
def neutral_gate(child: ChildConv2d, bias: float = 0.0) -> float:
    """Make the gate of ``child`` a constant.

    Its last kernel becomes zero, so its first gradient goes there; everything before keeps its random start.

    Args:
        child (ChildConv2d): changed in place.
        bias (float): b; at 0 the gate is one half, where a sigmoid moves easiest, and 1 / g is a power of two: exact.

    Returns:
        float: 1 / g, the factor that the kernel has to carry.
    """
    constant_init(child.gate.fc2, 0, bias)
    return 1 + float(torch.tensor(-bias, dtype=torch.float64).exp())


@torch.no_grad()
def set_scales(child: ChildConv2d, filters: Tensor, taps: Tensor, inverse_gate: float) -> None:
    """Let the child compute with ``W_parent * filters * taps`` behind a neutral gate.

    Args:
        child (ChildConv2d): changed in place.
        filters (Tensor): factor per filter, (C_out, 1, 1, 1).
        taps (Tensor): factor per tap, (1, 1, k, k); ones where the child has no spatial scale.
        inverse_gate (float): from :func:`neutral_gate`.
    """
    child.filter_scale.copy_(filters.double() * inverse_gate - 1)
    if child.spatial_scale is not None:
        child.spatial_scale.copy_(taps.double() - 1)

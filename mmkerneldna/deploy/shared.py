"""Convolutions that keep one kernel between them at run time: in the file, in memory and in the cache.

A child without spatial scale and residual computes with the very kernel of its parent. Its filter scale, like the factor of a
norm behind it, multiplies what comes out, filter by filter, so it need not be in the kernel (:mod:`.scaled_conv`).

A family's kernel is stored times the factors of one of its members, which then is a plain convolution; the others multiply by
the ratio of their factors to that member's.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..layers import ChildConv2d
from ..modules import is_plain_conv, replace, slots
from .bake import GatedConv
from .scaled_conv import ScaledConv2d

#: the largest ratio to a member's factors by which others may multiply, else the kernel stays as it was trained. Ratios to a
#: filter that its norm has all but switched off are limited by nothing, and in half precision such a filter would underflow.
LARGEST_RATIO = 1e3


def keep_shared(module: nn.Module) -> tuple[int, dict[str, str]]:
    """Replace, in place, children that may compute with the parent's kernel, and the parents, by :class:`ScaledConv2d`.

    Returns:
        tuple: number of children that share now; path of every other child -> why it does not.
    """
    members, reasons = _families(module)
    for child in members:
        if isinstance(child, ChildConv2d):
            replace(module, child, GatedConv(child.gate, ScaledConv2d(child)))
        else:
            replace(module, child, ScaledConv2d(child))
    return sum(isinstance(m, ChildConv2d) for m in members), reasons


def _families(module: nn.Module) -> tuple[list[nn.Conv2d], dict[str, str]]:
    """All convolutions that share a kernel with a child that may, and path -> reason of the other children."""
    reasons: dict[str, str] = {}
    families: dict[int, list[nn.Conv2d]] = {}
    paths: dict[nn.Module, str] = {}
    for path, child in module.named_modules():
        if isinstance(child, ChildConv2d):
            reason = _obstacle(child)
            if reason:
                reasons[path] = reason
            else:
                families.setdefault(id(child.weight), []).append(child)
                paths[child] = path
    for conv in module.modules():
        if is_plain_conv(conv) and id(conv.weight) in families:
            families[id(conv.weight)].append(conv)
    alone = [family[0] for family in families.values() if len(family) == 1]
    reasons |= {paths[child]: 'no other plain convolution of the model has its kernel' for child in alone}
    return [conv for family in families.values() if len(family) > 1 for conv in family], reasons


def _obstacle(child: ChildConv2d) -> str:
    if child.spatial_scale is not None:
        return 'its spatial scale makes the kernel another one'
    if child.residual_b is not None:
        return 'its residual makes the kernel another one'
    return '' if child.tied else "its kernel is no longer the parent's"


@torch.no_grad()
def settle_kernels(module: nn.Module) -> None:
    """Move factors into shared kernels where a member becomes plain by it, in place, the last step after folding."""
    scaled = [(owner, m) for owner, _, m in slots(module) if isinstance(m, ScaledConv2d)]
    scaled.sort(key=lambda place: isinstance(place[0], GatedConv))  # parents first: they keep their paths
    families: dict[int, list[ScaledConv2d]] = {}
    for _, member in scaled:
        family = families.setdefault(id(member.conv.weight), [])
        if member not in family:
            family.append(member)
    for family in families.values():
        weight = family[0].conv.weight
        holders = sum(p is weight for m in module.modules() for p in m._parameters.values())
        if holders == len(family):
            _divide(family, _reference(member.scale for member in family))
        for member in family:
            if (member.scale == 1).all():
                replace(module, member, member.to_plain())


def _reference(scales: Iterable[Tensor]) -> Tensor:
    """The factors of the first member that all others may be told by; 1 if there is none."""
    scales = list(scales)
    for reference in scales:
        if all((scale.abs() <= LARGEST_RATIO * reference.abs()).all() for scale in scales) and reference.all():
            return reference.clone()
    return torch.ones_like(scales[0])


def _divide(family: list[ScaledConv2d], reference: Tensor) -> None:
    family[0].conv.weight.mul_(reference[..., None])
    for member in family:
        member.scale.div_(reference)

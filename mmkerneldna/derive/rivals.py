"""Dynamic layers in a target: their static convolutions in the twin, and whether they start as these.

A layer's attention starts neutral and its experts, cells or frequencies hold the static kernel, see
:mod:`mmkerneldna.layers.static_start`. That it computes what the static convolution does is measured, not taken from the layer.
"""

from collections.abc import Collection, Iterable, Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from ..layers.static_start import StaticStart
from ..modules import replace
from .report import EXACT, NEW, RivalRow
from .source import DeriveError, listed

TOLERANCE = 1e-3  # of the relative error of a layer's output; the sums of a mixture are rounded


def rivals_of(target: nn.Module) -> dict[str, nn.Module]:
    """path -> dynamic layer that may start as a static convolution, each once."""
    return {path: module for path, module in target.named_modules() if isinstance(module, StaticStart)}


def own_entries(rivals: Iterable[str], state: Iterable[str]) -> list[str]:
    """The entries of ``state`` that only dynamic layers at these paths have, and no static convolution."""
    rivals = set(rivals)
    split = ((key, *_owner(key, rivals)) for key in state)
    return [key for key, owner, rest in split if owner and rest not in ('weight', 'bias')]


def _owner(key: str, paths: Collection[str]) -> tuple[str, str]:
    """The path among ``paths`` that an entry belongs to, and its name there; empty if there is none."""
    owner = key
    while owner:
        owner = owner.rpartition('.')[0]
        if owner in paths:
            return owner, key[len(owner) + 1 :]
    return '', key


def check_static(rivals: Iterable[str], state: Iterable[str]) -> None:
    """Refuse the weights of a net whose layers are dynamic already.

    Raises:
        DeriveError: names some entries.
    """
    own = own_entries(rivals, state)
    if own:
        raise DeriveError(
            f'the source holds dynamic layers already ({listed(own)}): load it as it is, there is nothing to derive'
        )


def make_static(twin: nn.Module) -> None:
    """Put a static convolution into the place of each dynamic layer of ``twin``."""
    for layer in rivals_of(twin).values():
        replace(twin, layer, static_conv(layer).requires_grad_(False).eval())


def static_conv(layer: nn.Module) -> nn.Conv2d:
    """A plain convolution of the same geometry, device and dtype."""
    like = next(layer.parameters())
    return nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        layer.bias is not None,
        layer.padding_mode,
        like.device,
        like.dtype,
    )


def keep_rivals(twin: nn.Module, rivals: Mapping[str, nn.Module], kept: Iterable[str]) -> dict[str, nn.Module]:
    """Put copies of the layers back into ``twin`` for which the source gives no kernel or no bias.

    Args:
        twin (nn.Module): after :func:`make_static`.
        rivals (Mapping): path -> layer of the target.
        kept (Iterable[str]): entries of the twin that the source does not give.

    Returns:
        dict[str, nn.Module]: the other layers.
    """
    without = {key.rpartition('.')[0] for key in kept}
    for path in rivals:
        if path in without:
            copy = deepcopy(rivals[path]).requires_grad_(False)
            copy.eval()
            replace(twin, twin.get_submodule(path), copy)
    return {path: layer for path, layer in rivals.items() if path not in without}


@torch.no_grad()
def start_rivals(rivals: Mapping[str, nn.Module], twin: nn.Module) -> list[RivalRow]:
    """Start every layer as the convolution of the twin where one of its settings is that convolution.

    Args:
        rivals (Mapping): path -> layer, changed in place and left in evaluation mode.
        twin (nn.Module): with static convolutions at these paths.

    Returns:
        list[RivalRow]: in the order of ``rivals``.
    """
    for path, layer in rivals.items():
        conv = twin.get_submodule(path)
        if layer.no_static_start() is None:
            layer.start_as(conv.weight, conv.bias)
        elif conv.bias is not None:
            layer.bias.copy_(conv.bias)
    return [_row(path, layer, twin.get_submodule(path)) for path, layer in rivals.items()]


def _row(path: str, layer: nn.Module, conv: nn.Module) -> RivalRow:
    error, reason = start_error(layer, conv), layer.no_static_start()
    if reason is None and not error < TOLERANCE:
        reason = f'its output is off by {error:.2g} of that of the static convolution'
    return RivalRow(path, type(layer).__name__, EXACT if reason is None else NEW, error, reason)


def start_error(layer: nn.Module, conv: nn.Module) -> float:
    """||difference|| / ||static output|| on noise, the layer in evaluation mode."""
    layer.eval()
    sides = [max(8, dilation * (side - 1) + 1) for side, dilation in zip(conv.kernel_size, conv.dilation)]
    noise = torch.randn(2, conv.in_channels, *sides, generator=torch.Generator().manual_seed(0)).to(conv.weight)
    goal = conv(noise)
    return float((layer(noise) - goal).norm() / goal.norm().clamp_min(1e-12))


def unsettled(rows: Iterable[RivalRow], rivals: Mapping[str, nn.Module]) -> set[str]:
    """Paths of the layers that training has to form: those without a static start, and all that share parameters with one."""
    new = [rivals[row.rival] for row in rows if row.kind == NEW]
    tensors = {id(t) for layer in new for t in _tensors(layer)}
    return {path for path, layer in rivals.items() if not tensors.isdisjoint(map(id, _tensors(layer)))}


def _tensors(layer: nn.Module) -> list[Tensor]:
    """Parameters, with the cells of a warehouse that hangs at another layer."""
    cells = getattr(layer, 'cells', None)
    return [*layer.parameters(), *([] if cells is None else [cells])]

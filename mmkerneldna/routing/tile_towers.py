"""Run the convolutions of a dense head on tiles of a map, with the very result that the whole map would give there.

A tile is cut out with a halo as wide as its towers look, and every convolution runs without padding, so that the halo is used
up at the end. Where it reaches over the border of the map, the whole map has zeros before *each* convolution: positions outside
are zeroed again after each.

Letters: M tiles of T x T positions, r halo, N batch, C channels, H W map.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmcv.cnn import ConvModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..modules import is_plain_conv
from .position_moe import to_positions


class Tiles:
    """Tiles of a map, those first whose halo reaches over its border.

    Args:
        kept: (N, h, w) of bool, h = ceil(H / T), w = ceil(W / T).
        tile: T.
        halo: r.
        size: H, W.

    Attributes:
        image (Tensor): (M,), which image each tile is of.
        positions (Tensor): (M, T T), y W + x of its positions.
        inside (Tensor): (M, T T), False at positions beyond the map.
    """

    def __init__(self, kept: Tensor, tile: int, halo: int, size: Sequence[int]) -> None:
        self.tile, self.halo, self.size = tile, halo, tuple(size)
        image, row, column = kept.nonzero(as_tuple=True)
        ys, xs = self._span(row, self.size[0]), self._span(column, self.size[1])
        over = ~(ys[1].all(1) & xs[1].all(1))
        order = over.argsort(descending=True, stable=True)
        self.image, self.border = image[order], int(over.sum())
        self._ys, self._xs = (tuple(part[order] for part in span) for span in (ys, xs))
        middle = slice(halo, halo + tile)
        self.positions = self._flat(middle, 0).flatten(1)
        self.inside = (self._ys[1][:, middle, None] & self._xs[1][:, None, middle]).flatten(1)

    def __len__(self) -> int:
        return len(self.image)

    def _span(self, first: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """Places of the rows (or columns) of each tile with its halo, held inside the map, and which are inside."""
        places = first[:, None] * self.tile + torch.arange(-self.halo, self.tile + self.halo, device=first.device)
        return places.clamp(0, side - 1), (places >= 0) & (places < side)

    def _flat(self, part: slice, image: Tensor | int) -> Tensor:
        height, width = self.size
        return (image * height + self._ys[0][:, part, None]) * width + self._xs[0][:, None, part]

    def cut(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (M, C, T + 2 r, T + 2 r), channels_last, zero outside of the map."""
        places = self._flat(slice(None), self.image[:, None, None])
        cut = to_positions(x).index_select(0, places.flatten()).view(*places.shape, -1).permute(0, 3, 1, 2)
        return self.blank(cut)

    def blank(self, y: Tensor) -> Tensor:
        """Zero what is outside of the map, in place: (M, K, S, S) with T <= S <= T + 2 r."""
        used = (self.tile + 2 * self.halo - y.shape[3]) // 2
        part = slice(used, used + y.shape[3])
        inside = self._ys[1][: self.border, part, None] & self._xs[1][: self.border, None, part]
        y[: self.border].mul_(inside[:, None])
        return y


def conv_of(module: nn.Module) -> Any:
    """The convolution of a ConvModule, or the module itself."""
    return module.conv if isinstance(module, ConvModule) else module


def halo_of(towers: Sequence[Sequence[nn.Module]], predictors: Sequence[nn.Module]) -> int | None:
    """How far the towers and the predictors behind them look; None if not the same, or if they need the whole map.

    Args:
        towers: those of a head, layer by layer.
        predictors: the last convolutions, behind the towers.
    """
    layers = [layer for tower in towers for layer in tower]
    if not all(map(_is_local, [*layers, *predictors])):
        return None
    last = {_reach(predictor) for predictor in predictors}
    halos = {sum(map(_reach, tower)) + reach for tower in towers for reach in last}
    same_steps = len({tuple(map(_reach, tower)) for tower in towers}) <= 1
    return halos.pop() if len(halos) == 1 and same_steps else None


def work_share(kept: float, tile: int, halo: int) -> float:
    """Part of a whole map's work that tiles with halos do, for layers that each look one position further."""
    steps = [(tile + 2 * left) ** 2 for left in range(max(halo, 1))]
    return kept * sum(steps) / len(steps) / tile**2


@torch.no_grad()
def run_on_tiles(forward, x: Tensor, tiles: Tiles, towers: Sequence[Sequence[nn.Module]], predictors: Sequence[nn.Module]):
    """``forward`` of the tiles of a map: (N, C, H, W) -> what it returns, (M, K, T, T) each.

    Args:
        forward: of the head, through ``towers`` and ``predictors``.
        x: the map.
        tiles: with the halo of :func:`halo_of`.
        towers, predictors: as in :func:`halo_of`.
    """
    layers = [layer for tower in towers for layer in tower]
    with _unpadded([conv_of(layer) for layer in (*layers, *predictors)]), _blanked(layers, tiles):
        return forward(tiles.cut(x))


def _is_local(layer: nn.Module) -> bool:
    """Whether a layer looks at its neighbours alone, and pads with zeros what keeps the size of the map."""
    conv = conv_of(layer)
    if not (is_plain_conv(conv) or getattr(conv, 'computes_plainly', False)) or isinstance(conv.padding, str):
        return False
    if isinstance(layer, ConvModule) and layer.with_norm and not _is_pointwise(layer.norm):
        return False
    sides = {p - d * (k - 1) / 2 for p, d, k in zip(conv.padding, conv.dilation, conv.kernel_size)}
    square = len(set(conv.padding)) == 1
    return conv.stride == (1, 1) and conv.padding_mode == 'zeros' and sides == {0.0} and square


def _is_pointwise(norm: nn.Module) -> bool:
    return isinstance(norm, nn.Identity) or (isinstance(norm, _BatchNorm) and norm.track_running_stats)


def _reach(layer: nn.Module) -> int:
    return conv_of(layer).padding[0]


@contextmanager
def _unpadded(convs: Sequence[Any]) -> Iterator[None]:
    paddings = [(conv, conv.padding) for conv in convs]
    for conv in convs:
        conv.padding = (0, 0)
    try:
        yield
    finally:
        for conv, padding in paddings:
            conv.padding = padding


@contextmanager
def _blanked(layers: Sequence[nn.Module], tiles: Tiles) -> Iterator[None]:
    hooks = [layer.register_forward_hook(lambda module, args, y: tiles.blank(y)) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

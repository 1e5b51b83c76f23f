"""Blocks on kept tiles: cut out with their surroundings, run as a batch, put back.

SBNet, Ren et al., CVPR 2018, https://arxiv.org/abs/1801.02108

A window is a tile with a halo as wide as one block looks, moved inside the map where it would stick out: at the map's border
the padding of the block's own convolutions is then right, and what their padding spoils elsewhere stays in the halo. All
windows have one size, so the block runs on them as it is. Between two blocks only the halos are renewed: their kept positions
from the tiles that own them, the others as they were.

Letters: N batch, C channels, H W map, T side of a tile, h w tiles per side, K kept tiles, s side of a window (two sides where
the map is smaller than a window).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


def on_positions(mask: Tensor, tile: int, size: Sequence[int]) -> Tensor:
    """Each decision for all positions of its tile: (N, 1, h, w) -> (N, 1, H, W).

    Args:
        mask: of any type.
        tile: T.
        size: H, W.
    """
    if tile == 1:
        return mask
    rows, columns = (torch.div(torch.arange(side, device=mask.device), tile, rounding_mode='floor') for side in size)
    return mask.index_select(2, rows).index_select(3, columns)


class Windows(NamedTuple):
    """Where the windows lie; all are indices of rows, those of the map (N H W, C) or of the windows (K s s, C).

    Attributes:
        sides (tuple[int, int]): s.
        positions: (K s s,), of the map, of every row of the windows.
        inside: rows of the windows that belong to their tile.
        halo: the other rows.
        edge: rows inside that lie in the halo of another window.
    """

    sides: tuple[int, int]
    positions: Tensor
    inside: Tensor
    halo: Tensor
    edge: Tensor


def cut(keep: Tensor, tile: int, halo: int, size: tuple[int, int]) -> Windows:
    """The windows of the kept tiles.

    Args:
        keep: (N, 1, h, w) of bool.
        tile: T.
        halo: positions around a tile.
        size: H, W.
    """
    image, _, *cells = keep.nonzero(as_tuple=True)
    sides = tuple(min(side, tile + 2 * halo) for side in size)
    origins = [cell * tile for cell in cells]
    corners = [(o - halo).clamp(0, side - s) for o, side, s in zip(origins, size, sides)]
    steps = [torch.arange(s, device=keep.device) for s in sides]
    rows, columns = (corner[:, None] + step for corner, step in zip(corners, steps))
    inside_rows, inside_columns = ((p >= o[:, None]) & (p < o[:, None] + tile) for p, o in zip((rows, columns), origins))
    positions = ((image[:, None] * size[0] + rows)[:, :, None] * size[1] + columns[:, None]).flatten()
    inside = (inside_rows[:, :, None] & inside_columns[:, None]).flatten()
    halo_rows = (~inside).nonzero().flatten()
    wanted = torch.zeros(len(keep) * size[0] * size[1], dtype=torch.bool, device=keep.device)
    wanted[positions[halo_rows]] = True
    return Windows(
        (sides[0], sides[1]), positions, inside.nonzero().flatten(), halo_rows, (inside & wanted[positions]).nonzero().flatten()
    )


def compute_tiles(x: Tensor, keep: Tensor, tile: int, halo: int, blocks: Sequence[nn.Module]) -> Tensor | None:
    """Blocks one after the other in the kept tiles, the identity elsewhere.

    Args:
        x: (N, C, H, W); overwritten where it is channels_last.
        keep: (N, 1, h, w) of bool, at least one kept.
        tile: T.
        halo: how far a block looks.
        blocks: shape-preserving, local.

    Returns:
        Tensor: (N, C, H, W), channels_last; None where the windows together are no smaller than the map.
    """
    channels, height, width = x.shape[1:]
    windows = cut(keep, tile, halo, (height, width))
    if len(windows.positions) >= len(x) * height * width:
        return None
    x = x.contiguous(memory_format=torch.channels_last)
    rows = x.permute(0, 2, 3, 1).view(-1, channels)
    parts = rows.index_select(0, windows.positions)
    renew = windows.positions[windows.halo]
    for number, block in enumerate(blocks):
        if number:
            if len(windows.edge):
                rows.index_copy_(0, windows.positions[windows.edge], parts.index_select(0, windows.edge))
            parts.index_copy_(0, windows.halo, rows.index_select(0, renew))
        batch = block(parts.view(-1, *windows.sides, channels).permute(0, 3, 1, 2))
        parts = batch.permute(0, 2, 3, 1).reshape(-1, channels).to(rows.dtype)
    rows.index_copy_(0, windows.positions[windows.inside], parts.index_select(0, windows.inside))
    return x

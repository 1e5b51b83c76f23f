"""Pictures of what a model decides: computed parts of each image, experts of its positions, images that skip blocks."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from ..routing.tiles import on_positions
from .panels import side_by_side
from .routing_record import Seen

#: what is not computed is shown so dark
DIMMED = 0.25
#: weight of the colours of experts over the picture
OVERLAY = 0.55


def paint_masks(picture: np.ndarray, seen: Seen) -> np.ndarray | None:
    """The picture once per gate that decides over a map, dimmed where nothing is computed; None without such gates.

    Args:
        picture: (H, W, 3), RGB, uint8; the net saw it scaled.
        seen: what was decided.
    """
    if not seen.tiles:
        return None
    panels = []
    for path, tile in seen.tiles.items():
        each = on_positions(seen.masks[path][None, None], tile, seen.maps[path])[0, 0]
        light = _on_picture(each, seen.inside, picture) > 0.5
        panels.append((picture * np.where(light, 1.0, DIMMED)[:, :, None]).astype(np.uint8))
    captions = [[short_name(path), f'{seen.masks[path].float().mean():.0%} computed'] for path in seen.tiles]
    return side_by_side(panels, captions)


def paint_experts(picture: np.ndarray, seen: Seen) -> np.ndarray | None:
    """The picture once per layer that sends positions to experts, each in its colour; None without such layers.

    Colours are matplotlib's tab20, in the order of the experts (or leaves).
    """
    shown = {path: numbers for path, numbers in seen.numbers.items() if numbers.numel() > 1}
    if not shown:
        return None
    colours = 255 * np.asarray(colormaps['tab20'].colors)  # type: ignore[attr-defined]
    panels = []
    for numbers in shown.values():
        place = _on_picture(numbers, seen.inside, picture).astype(int)
        panels.append(((1 - OVERLAY) * picture + OVERLAY * colours[place % len(colours)]).astype(np.uint8))
    return side_by_side(panels, [[path] for path in shown])


def _on_picture(values: Tensor, inside: tuple[float, float], picture: np.ndarray) -> np.ndarray:
    """Values of a map, (h, w), at the pixels of a picture, (H, W)."""
    height, width = (max(1, round(part * side)) for part, side in zip(inside, values.shape))
    return F.interpolate(values[None, None, :height, :width].double(), picture.shape[:2])[0, 0].numpy()


def block_figure(names: Sequence[str], seen: Sequence[Seen]) -> Figure | None:
    """A line per image, a column per gate that decides per image, green where the block was called; None without such gates."""
    columns = [path for path in seen[0].masks if path not in seen[0].tiles]
    if not columns:
        return None
    called = torch.stack([torch.stack([one.masks[path].flatten()[0] for path in columns]) for one in seen])
    figure = Figure(figsize=(2.2 + 0.42 * len(columns), 1.4 + 0.32 * len(names)), layout='constrained')
    FigureCanvasAgg(figure)  # no pyplot: nothing global, no display needed
    axis = figure.subplots()
    axis.imshow(called.numpy(), cmap='Greens', vmin=0, vmax=1.4, aspect='auto')
    axis.set_xticks(
        range(len(columns)), [f'{short_name(path)}\n{rate:.0%}' for path, rate in zip(columns, called.float().mean(0))]
    )
    axis.tick_params(axis='x', labelrotation=60)
    axis.set_yticks(range(len(names)), names)
    axis.set_title('green: the block was called')
    return figure


def short_name(path: str) -> str:
    """``layer3.2`` of ``backbone.routing_gates.layer3_2``; other paths as they are."""
    _, bank, name = path.rpartition('routing_gates.')
    return name.replace('_', '.') if bank else path

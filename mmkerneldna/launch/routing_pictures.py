"""Pictures of what gates decide: the computed parts of each image, and which images skip which blocks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

from ..anatomy import unwrap
from ..routing.gates import PositionGate
from ..routing.keep import Decisions, keep_gates
from ..routing.stages import GatedStage
from .panels import side_by_side

#: what is not computed is shown so dark
DIMMED = 0.25


@dataclass(frozen=True)
class Seen:
    """What the gates decided on one image.

    Attributes:
        masks: {gate: (h, w) of bool}; (1, 1) of a gate that decides per image.
        maps: {gate: H, W of the map it decides on}.
    """

    masks: dict[str, Tensor]
    maps: dict[str, tuple[int, int]]


class MapSizes:
    """Notes, during a ``with``, the size of the map that each gate decides on.

    Args:
        model: with gates.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = unwrap(model)
        self.sizes: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> dict[str, tuple[int, int]]:
        paths = {gate: path for path, gate in keep_gates(self.model).items()}

        def note(stage: GatedStage, args: tuple, output: Tensor) -> None:
            for gate, _ in stage._units:
                if gate is not None:
                    self.sizes[paths[gate]] = (output.shape[2], output.shape[3])

        self.hooks = [m.register_forward_hook(note) for m in self.model.modules() if isinstance(m, GatedStage)]
        return self.sizes

    def __exit__(self, *exc) -> None:
        for hook in self.hooks:
            hook.remove()


def last_decisions(seen: Decisions, maps: Mapping[str, tuple[int, int]]) -> Seen:
    """Of the last image that was run."""
    masks = {path: masks[-1][-1, 0].cpu() for path, masks in seen.masks().items() if masks}
    return Seen(masks, {path: maps[path] for path in masks})


def paint_masks(picture: np.ndarray, seen: Seen, gates: Mapping[str, nn.Module]) -> np.ndarray | None:
    """The picture once per gate that decides per position, dimmed where nothing is computed; None without such gates.

    Args:
        picture: (H, W, 3), RGB, uint8; the net saw it scaled.
        seen: what was decided.
        gates: {path: gate}.
    """
    shown = {path: mask for path, mask in seen.masks.items() if isinstance(gates[path], PositionGate)}
    if not shown:
        return None
    pictures = [_dimmed(picture, mask, gates[path].tile, seen.maps[path]) for path, mask in shown.items()]  # type: ignore[arg-type]
    captions = [[short_name(path), f'{mask.float().mean():.0%} computed'] for path, mask in shown.items()]
    return side_by_side(pictures, captions)


def _dimmed(picture: np.ndarray, mask: Tensor, tile: int, size: tuple[int, int]) -> np.ndarray:
    each = mask.repeat_interleave(tile, 0).repeat_interleave(tile, 1)[: size[0], : size[1]]
    on_picture = F.interpolate(each[None, None].float(), picture.shape[:2])[0, 0]
    return (picture * torch.where(on_picture > 0.5, 1.0, DIMMED)[:, :, None].numpy()).astype(np.uint8)


def block_figure(names: Sequence[str], seen: Sequence[Seen], gates: Mapping[str, nn.Module]) -> Figure | None:
    """A line per image, a column per gate that decides per image, green where the block was called; None without such gates."""
    columns = [path for path in seen[0].masks if not isinstance(gates[path], PositionGate)]
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
    """``layer3.2`` of ``backbone.routing_gates.layer3_2``."""
    return path.rpartition('routing_gates.')[2].replace('_', '.')

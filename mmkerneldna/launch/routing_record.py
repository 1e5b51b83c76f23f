"""What the gates, trees and experts of a model decided on one picture."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy import unwrap
from ..layers.expert_gate import ExpertGate
from ..layers.moe_conv import MoEConv2d
from ..routing import RoutingAttention2d, TreeRouter, decisions, record_leaves
from ..routing.gates import PositionGate
from ..routing.keep import Decisions, keep_gates
from ..routing.sparse_query import SparseQuery
from ..routing.stages import GatedStage


@dataclass(frozen=True)
class Seen:
    """Of the last image that was run.

    Attributes:
        masks: {gate: (h, w) of bool}; (1, 1) of a gate that decides per image.
        tiles: {gate over a map: positions per side of one decision}.
        maps: {gate over a map: H, W of the map}.
        numbers: {layer of experts: (H, W) of expert numbers, leaves for a tree}; (1, 1) where it decides per image.
        inside: parts of the height and width of the maps that the picture covers; the rest pads.
    """

    masks: dict[str, Tensor] = field(default_factory=dict)
    tiles: dict[str, int] = field(default_factory=dict)
    maps: dict[str, tuple[int, int]] = field(default_factory=dict)
    numbers: dict[str, Tensor] = field(default_factory=dict)
    inside: tuple[float, float] = (1.0, 1.0)


def expert_layers(model: nn.Module) -> dict[str, ExpertGate]:
    """{path: layer} of the layers that send images or positions to experts."""
    return {path: m for path, m in unwrap(model).named_modules() if isinstance(m, ExpertGate)}


def without_pictures(model: nn.Module) -> list[str]:
    """Paths of layers whose decisions are no map: regions of routing attention that look at others."""
    return [path for path, m in unwrap(model).named_modules() if isinstance(m, RoutingAttention2d)]


@contextmanager
def record_routing(model: nn.Module) -> Iterator['Record']:
    """Record during a ``with``; :meth:`Record.last` tells what was decided."""
    inner = unwrap(model)
    with decisions(inner) as seen, record_leaves(inner) as trees:
        record = Record(inner, seen, trees)
        try:
            yield record
        finally:
            for hook in record.hooks:
                hook.remove()


def _sides(layer: nn.Module, y: Tensor) -> tuple[int, int]:
    """Height and width of a layer's map; some have the channels last."""
    height, width = y.shape[1:-1] if getattr(layer, 'channel_dim', 1) == -1 else y.shape[2:]
    return height, width


class Record:
    """Notes decisions and sizes of maps by hooks.

    Args:
        model: not wrapped.
        seen: of :func:`.keep.decisions`.
        trees: of :func:`.tree_router.record_leaves`.
    """

    def __init__(self, model: nn.Module, seen: Decisions, trees: Mapping[str, TreeRouter]) -> None:
        self.seen, self.trees, self.experts = seen, trees, expert_layers(model)
        self.tiles = {path: gate.tile for path, gate in seen.gates.items() if isinstance(gate, PositionGate)}
        self.sizes: dict[str, tuple[int, int]] = {}
        self.chosen: dict[str, Tensor] = {}
        self.inside = (1.0, 1.0)
        self.hooks: list[Any] = []
        self._watch_maps(model)
        for path, layer in self.experts.items():
            self._hook(layer, lambda m, args, y, path=path: self.sizes.__setitem__(path, _sides(m, y)))
            if not layer.is_tree:
                self._hook(layer.gate, lambda m, args, y, path=path: self.chosen.__setitem__(path, y.detach().argmax(1).cpu()))
        if hasattr(model, 'data_preprocessor'):
            self._hook(model.data_preprocessor, self._note_padding)

    def _hook(self, module: nn.Module, function: Callable) -> None:
        self.hooks.append(module.register_forward_hook(function))

    def _watch_maps(self, model: nn.Module) -> None:
        paths = {gate: path for path, gate in keep_gates(model).items()}

        def note(gates: list, ratio: int) -> Callable:
            size = lambda y: (y.shape[2] * ratio, y.shape[3] * ratio)  # noqa: E731
            return lambda m, args, y: self.sizes.update({paths[gate]: size(y) for gate in gates})

        for module in model.modules():
            if isinstance(module, GatedStage):
                self._hook(module, note([gate for gate, _ in module._units if gate is not None], 1))
            elif isinstance(module, SparseQuery):  # asked on a coarse map about level 0
                gate = module.query_gate
                self.tiles[paths[gate]] = module.tile
                self._hook(gate.score, note([gate], module.tile // gate.cells))

    def _note_padding(self, preprocessor: nn.Module, args: tuple, output: dict) -> None:
        whole, samples = output['inputs'].shape[-2:], output.get('data_samples')
        if samples:
            shape = samples[-1].metainfo['img_shape'][:2]
            self.inside = (shape[0] / whole[0], shape[1] / whole[1])

    def last(self) -> Seen:
        """What was decided on the last image (test-time augmentation runs several)."""
        masks = {path: calls[-1][-1, 0].cpu() for path, calls in self.seen.masks().items() if calls}
        tiles = {path: self.tiles[path] for path in masks if path in self.tiles}
        numbers = {path: self._numbers(path, layer) for path, layer in self.experts.items() if path in self.sizes}
        return Seen(masks, tiles, {path: self.sizes[path] for path in tiles}, numbers, self.inside)

    def _numbers(self, path: str, layer: ExpertGate) -> Tensor:
        height, width = (1, 1) if isinstance(layer, MoEConv2d) else self.sizes[path]
        chosen = (self.trees[f'{path}.gate'].seen or [torch.zeros(0)])[-1] if layer.is_tree else self.chosen[path]
        return chosen[-height * width :].view(height, width)

"""Which operations of an exported graph are worth quantising, told from the graph alone.

Convolutions and matrix products carry the time and most of the weights. What lies between them on feature maps (residual sums,
gates, pooling, resizing, concatenation) is quantised with them, or numbers would go back and forth between int8 and float.
The rest stays float: normalisation before the first layer; decoding of boxes, NMS, the resizing of logits and the largest class
behind the last one; and the arithmetic of boxes between a proposal network and a second stage, where one of 256 steps would be
several pixels.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

#: axes of a feature map: N, C, H, W
MAP_RANK = 4


@dataclass(frozen=True)
class Operation:
    """A node of a graph.

    Attributes:
        name (str): of the node.
        weighs (bool): a convolution or a product with a constant matrix.
        inputs (tuple[str, ...]): names of the nodes whose outputs it takes.
        rank (int, optional): axes of its output; None where it is not known.
        carries (bool, optional): whether the runtime computes it in int8, so that quantised numbers pass through it. By default
            it does if its output is a feature map.
    """

    name: str
    weighs: bool
    inputs: tuple[str, ...]
    rank: int | None
    carries: bool | None = None


@dataclass(frozen=True)
class Selection:
    """Names of nodes, in the graph's order.

    Attributes:
        layers: convolutions and matrix products.
        between: what is quantised with them.
        rest: what stays float.
        feeds: layer, one that stays float too -> the layers whose outputs get to it without another one in between.
        last: layers whose outputs only float operations take, as boxes, scores and logits are.
    """

    layers: tuple[str, ...]
    between: tuple[str, ...]
    rest: tuple[str, ...]
    feeds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    last: tuple[str, ...] = ()

    def without(self, names: Iterable[str]) -> 'Selection':
        """Some layers stay float."""
        left_out = set(names)
        layers = tuple(name for name in self.layers if name not in left_out)
        rest = self.rest + tuple(name for name in self.layers if name in left_out)
        return replace(self, layers=layers, rest=rest)


def select(operations: Sequence[Operation]) -> Selection:
    """Sort the nodes of a graph into those that are quantised and those that stay float."""
    takes = {operation.name: operation.inputs for operation in operations}
    gives: dict[str, list[str]] = defaultdict(list)
    for operation in operations:
        for name in operation.inputs:
            gives[name].append(operation.name)
    layers = [operation.name for operation in operations if operation.weighs]
    behind, before = _reached(layers, gives), _reached(layers, takes)
    between = [
        operation.name
        for operation in operations
        if not operation.weighs and _carries(operation) and operation.name in behind and operation.name in before
    ]
    known = {*layers, *between}
    rest = tuple(operation.name for operation in operations if operation.name not in known)
    feeds = {name: tuple(_nearest(name, takes, set(layers))) for name in layers}
    through = {name: gives[name] for name in between}
    last = [name for name in layers if not _reached([name], {**through, name: gives[name]}) & set(layers)]
    return Selection(tuple(layers), tuple(between), rest, feeds, tuple(last))


def channel_axis(values: np.ndarray) -> int:
    """Axis of a layer's channels: the second of a feature map, the last of rows."""
    return 1 if values.ndim == MAP_RANK else values.ndim - 1


def _carries(operation: Operation) -> bool:
    return operation.rank == MAP_RANK if operation.carries is None else operation.carries


def _nearest(name: str, takes: Mapping[str, Sequence[str]], layers: set[str]) -> set[str]:
    """The layers that a walk against the data's direction meets first."""
    met: set[str] = set()
    seen: set[str] = set()
    waiting = list(takes[name])
    while waiting:
        source = waiting.pop()
        if source in layers:
            met.add(source)
        elif source not in seen:
            seen.add(source)
            waiting += takes.get(source, ())
    return met


def _reached(start: Iterable[str], edges: Mapping[str, Sequence[str]]) -> set[str]:
    """All nodes that a path of at least one edge leads to."""
    found: set[str] = set()
    waiting = list(start)
    while waiting:
        for name in edges.get(waiting.pop(), ()):
            if name not in found:
                found.add(name)
                waiting.append(name)
    return found

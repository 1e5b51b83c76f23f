"""Values inside an ONNX graph: of layers of a whole file, or piece by piece, of a graph that changes meanwhile."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .runtimes import require


def layer_outputs_onnx(path: Path, layers: Sequence[str], images: np.ndarray) -> dict[str, np.ndarray]:
    """What each layer of a file puts out for one batch.

    Args:
        path: of an ONNX file, quantised or not.
        layers: names of nodes.
        images: (N, 3, H, W).

    Returns:
        dict: name of a layer -> output. Layers that the file has no more are left out.
    """
    return next(each_layer_outputs(path, layers, [images]))


def each_layer_outputs(path: Path, layers: Sequence[str], batches: Iterable[np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """As :func:`layer_outputs_onnx`, for one batch after the other."""
    onnx = require('onnx')
    model = onnx.load(str(path))
    wanted = {node.name: node.output[0] for node in model.graph.node if node.name in set(layers)}
    known = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted.values() if name not in known)
    session = _open(model)
    for images in batches:
        values = session.run(list(wanted.values()), {session.get_inputs()[0].name: images})
        yield dict(zip(wanted, values))


def _open(model: Any) -> Any:
    runtime = require('onnxruntime')
    return runtime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])


class Pieces:
    """Compute a graph piece by piece on several batches, and keep only what later pieces take.

    So a graph is computed once, however many of its values are asked for, and constants behind the last piece may be changed.

    Args:
        model: an ONNX model.
        batches: of its only input.
    """

    def __init__(self, model: Any, batches: Sequence[np.ndarray]) -> None:
        self.onnx, self.model = require('onnx'), model
        self.nodes = list(model.graph.node)
        self.maker = {output: index for index, node in enumerate(self.nodes) for output in node.output}
        self.takers: dict[str, set[int]] = {}
        for index, node in enumerate(self.nodes):
            for name in _inputs(node):
                self.takers.setdefault(name, set()).add(index)
        self.values = [{model.graph.input[0].name: batch} for batch in batches]
        self.done: set[int] = set()
        self.moving = self._moving()

    def run(self, wanted: str) -> list[np.ndarray]:
        """The value of a name, for each batch. Later pieces take these very arrays: what the caller adds to them counts."""
        piece = self._piece(wanted)
        new = piece & self.moving
        self.done |= new
        kept = [name for index in sorted(new) for name in self.nodes[index].output if name == wanted or self._is_needed(name)]
        taken = sorted({name for index in piece for name in _inputs(self.nodes[index])} & self.values[0].keys())
        session = self._session(piece, taken, kept)
        for values in self.values:
            results = session.run(kept, {name: values[name] for name in taken})
            values.update(zip(kept, results))
            for name in [name for name in values if name != wanted and not self._is_needed(name)]:
                del values[name]
        return [values[wanted] for values in self.values]

    def _piece(self, wanted: str) -> set[int]:
        """Nodes between what is known and what is wanted."""
        found: set[int] = set()
        waiting = [wanted]
        while waiting:
            name = waiting.pop()
            index = self.maker.get(name)
            if name in self.values[0] or index is None or index in found:
                continue
            found.add(index)
            waiting += _inputs(self.nodes[index])
        return found

    def _session(self, piece: set[int], taken: Sequence[str], kept: Sequence[str]) -> Any:
        helper = self.onnx.helper
        nodes = [self.nodes[index] for index in sorted(piece)]
        used = {name for node in nodes for name in _inputs(node)}
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), [None] * value.ndim)
            for name, value in ((name, self.values[0][name]) for name in taken)
        ]
        graph = helper.make_graph(
            nodes,
            'piece',
            inputs,
            [self.onnx.ValueInfoProto(name=name) for name in kept],
            [tensor for tensor in self.model.graph.initializer if tensor.name in used],
        )
        model = helper.make_model(graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)
        return _open(model)

    def _moving(self) -> set[int]:
        """Nodes that depend on the input; of the others, which compute with constants only, no value is kept."""
        found: set[int] = set()
        waiting = list(self.values[0])
        while waiting:
            for index in self.takers.get(waiting.pop(), set()) - found:
                found.add(index)
                waiting += self.nodes[index].output
        return found

    def _is_needed(self, name: str) -> bool:
        return not self.takers.get(name, set()) <= self.done


def _inputs(node: Any) -> Iterable[str]:
    """What a node takes, and what the graphs in its attributes take from outside."""
    inner = [name for attribute in node.attribute if attribute.HasField('g') for n in attribute.g.node for name in _inputs(n)]
    return [name for name in (*node.input, *inner) if name]

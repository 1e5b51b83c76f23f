"""Biases of an int8 ONNX file corrected, so that each layer's outputs keep the float layer's mean.

Rounding of weights and activations, clipping, and ReLUs behind noisy values move the mean of a layer's outputs, filter by
filter, and such shifts add up from layer to layer. They are constant, so biases can take them back. Source: Nagel et al.,
Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019, https://arxiv.org/abs/1906.04721, of which
this is the form that measures. Layers are corrected in the graph's order, each behind corrected ones; the graph is computed
once, in pieces that end at a layer.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .onnx_values import Pieces, each_layer_outputs
from .quantise_graph import channel_axis
from .runtimes import require


def correct_biases(path: Path, quantised: Path, layers: Sequence[str], batches: Sequence[np.ndarray]) -> None:
    """Correct the biases of an int8 file, in place.

    Args:
        path: of the float file.
        quantised: of the int8 file made of it, in QDQ form.
        layers: names of convolutions and matrix products, in the graph's order, in int8 or left float.
        batches: (N, 3, H, W) each, uint8: what means are taken over.
    """
    onnx = require('onnx')
    wanted = _float_means(path, layers, batches)
    model = onnx.load(str(quantised))
    by_name = {node.name: node for node in model.graph.node}
    nodes = [by_name[name] for name in layers]
    biases = _Biases(model, nodes)
    graph = Pieces(model, batches)
    for node in filter(biases.has, nodes):
        outputs = graph.run(node.output[0])
        mean = _Mean()
        for values in outputs:
            mean.take(values)
        if mean.count and wanted[node.name].count:
            added = biases.add(node, wanted[node.name].value - mean.value)
            for values in outputs:
                shape = [-1 if axis == channel_axis(values) else 1 for axis in range(values.ndim)]
                np.add(values, added.reshape(shape), out=values)
    onnx.save(model, str(quantised))


@dataclass
class _Mean:
    """Mean per channel, (C,) float64, of outputs taken one after the other; the count is 0 where no box came to a layer."""

    total: np.ndarray | float = 0.0
    count: int = 0

    def take(self, values: np.ndarray) -> None:
        axis = channel_axis(values)
        self.total = self.total + values.sum(tuple(other for other in range(values.ndim) if other != axis), dtype=np.float64)
        self.count += values.size // values.shape[axis]

    @property
    def value(self) -> np.ndarray:
        return np.asarray(self.total / self.count)


def _float_means(path: Path, layers: Sequence[str], batches: Sequence[np.ndarray]) -> dict[str, _Mean]:
    means = {name: _Mean() for name in layers}
    for outputs in each_layer_outputs(path, layers, batches):
        for name, values in outputs.items():
            means[name].take(values)
    return means


class _Biases:
    """Biases of a model in QDQ form: int32 behind a DequantizeLinear, or float where a layer stays float.

    Args:
        model: is changed: a layer gets a bias of its own where several share one, as heads on several levels do.
        nodes: layers.
    """

    def __init__(self, model: Any, nodes: Iterable[Any]) -> None:
        self.onnx, self.graph = require('onnx'), model.graph
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.maker = {output: node for node in model.graph.node for output in node.output}
        uses = Counter(name for node in model.graph.node for name in node.input)
        for node in filter(self.has, nodes):
            if uses[node.input[2]] > 1:
                uses[node.input[2]] -= 1
                self._separate(node)

    def has(self, node: Any) -> bool:
        return len(node.input) > 2 and self._source(node)[0] in self.constants

    def add(self, node: Any, change: np.ndarray) -> np.ndarray:
        """Change a layer's bias, (C,); what it has become larger by, rounded to its steps, is returned, float32."""
        name, scale = self._source(node)
        old = self.onnx.numpy_helper.to_array(self.constants[name])
        if scale is None:
            new = (old + change).astype(old.dtype)
            added = new - old
        else:
            limits = np.iinfo(old.dtype)
            new = np.clip(old + np.rint(change / scale), limits.min, limits.max).astype(old.dtype)
            added = (new.astype(np.float64) - old) * scale
        self.constants[name].CopyFrom(self.onnx.numpy_helper.from_array(new, name))
        return added.astype(np.float32)

    def _source(self, node: Any) -> tuple[str, np.ndarray | None]:
        """Name of the constant, and the size of its steps if it is one of integers."""
        maker = self.maker.get(node.input[2])
        if maker is None or maker.op_type != 'DequantizeLinear':
            return node.input[2], None
        scale = self.onnx.numpy_helper.to_array(self.constants[maker.input[1]])
        return maker.input[0], scale.astype(np.float64)

    def _separate(self, node: Any) -> None:
        own, (name, scale) = f'{node.name}/own_bias', self._source(node)
        copy = self.graph.initializer.add()
        copy.CopyFrom(self.constants[name])
        copy.name, self.constants[own] = own, copy
        if scale is None:
            node.input[2] = own
            return
        reader = self.onnx.NodeProto()
        reader.CopyFrom(self.maker[node.input[2]])
        reader.name, reader.input[0], reader.output[0] = f'{own}/read', own, f'{own}/float'
        self.graph.node.insert(0, reader)
        node.input[2], self.maker[f'{own}/float'] = f'{own}/float', reader

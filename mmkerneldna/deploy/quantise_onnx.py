"""int8 for onnxruntime: its static quantisation, in the QDQ form that every runtime of ONNX reads."""

import contextlib
import importlib
import logging
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from mmengine.logging import print_log

from .bias_correction import correct_biases
from .onnx_values import each_layer_outputs
from .quantise_graph import Operation, Selection, select
from .runtimes import require

#: node types that onnxruntime computes in int8, so that a quantised map passes through them
BETWEEN = (
    *('Add', 'Mul', 'Concat', 'Resize', 'MaxPool', 'AveragePool', 'GlobalAveragePool'),
    *('Relu', 'Clip', 'Sigmoid', 'LeakyRelu'),
)
LAYERS = ('Conv', 'MatMul', 'Gemm')
#: images that biases are corrected on; some feature maps of all of them are in memory at once
CORRECTED_ON = 16


def read_selection(path: Path) -> Selection:
    """What of an ONNX file is quantised."""
    onnx = require('onnx')
    graph = onnx.shape_inference.infer_shapes(onnx.load(str(path))).graph
    values = [*graph.value_info, *graph.output]
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in values if value.type.tensor_type.HasField('shape')}
    constants = {tensor.name for tensor in graph.initializer}
    maker = {output: node for node in graph.node for output in node.output}
    constants |= {name for name, node in maker.items() if node.op_type == 'Constant'}
    weighs = {node.name: node.op_type in LAYERS and any(name in constants for name in node.input[1:2]) for node in graph.node}
    operations = []
    for node in graph.node:
        inputs = tuple(maker[name].name for name in node.input if name in maker)
        # a ReLU behind a layer is part of it, else half of the layer's steps would be spent on what the ReLU takes away
        fused = node.op_type == 'Relu' and weighs[inputs[0]] if inputs else False
        carries = True if fused else None if node.op_type in BETWEEN else False
        operations.append(Operation(node.name, weighs[node.name], inputs, ranks.get(node.output[0]), carries))
    return select(operations)


def kernel_sizes_onnx(path: Path, layers: Collection[str]) -> dict[str, int]:
    """Layer of an ONNX file -> elements of its kernel or matrix."""
    graph = require('onnx').load(str(path)).graph
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in graph.initializer}
    return {node.name: sizes.get(node.input[1], 0) for node in graph.node if node.name in layers}


def quantise_onnx(path: Path, out: Path, batches: Sequence[np.ndarray], selection: Selection, full_range: bool = True) -> None:
    """Write an int8 copy of an ONNX file.

    Args:
        path, out: of the float file, of the new one.
        batches: (N, 3, H, W) each, uint8: what the ranges of the activations are measured on.
        selection: what is quantised.
        full_range (bool): False leaves one bit of the weights unused, for a CPU that would saturate in 16 bits (no VNNI).
    """
    onnx, _ = require('onnx'), require('onnxruntime')
    tools = importlib.import_module('onnxruntime.quantization')
    model = onnx.load(str(path))
    types = {node.name: node.op_type for node in model.graph.node}
    nodes = [*selection.layers, *selection.between]
    with tempfile.TemporaryDirectory() as folder, _advice_in_the_log(Path(str(tools.__file__)).parent):
        inferred = Path(folder, 'inferred.onnx')
        onnx.shape_inference.infer_shapes_path(str(path), str(inferred))
        tools.quantize_static(
            str(inferred),
            str(out),
            _reader(tools, model.graph.input[0].name)(batches),
            quant_format=tools.QuantFormat.QDQ,
            op_types_to_quantize=sorted({types[name] for name in nodes}),
            nodes_to_quantize=nodes,
            per_channel=True,
            reduce_range=not full_range,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
            calibrate_method=tools.CalibrationMethod.MinMax,
            # the mean of each image's range, not the range of all: rare values are clipped, and steps get finer. The range of
            # nothing is infinite, and so would be the mean
            extra_options=dict(CalibMovingAverage=_never_empty(path, selection.layers, batches)),
        )
    correct_biases(path, out, tuple(selection.feeds), batches[:CORRECTED_ON])


def _never_empty(path: Path, layers: Sequence[str], batches: Sequence[np.ndarray]) -> bool:
    """Whether each layer has something to do in each batch; one behind boxes has not where none was proposed."""
    return all(values.size for outputs in each_layer_outputs(path, layers, batches) for values in outputs.values())


@contextlib.contextmanager
def _advice_in_the_log(package: Path) -> Iterator[None]:
    """What a package says by the root logger goes to mmengine's log: advice for who prepares graphs by hand, not for a user."""

    def elsewhere(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR or package not in Path(record.pathname).parents:
            return True
        print_log(f'{package.parent.name}: {record.getMessage()}', logger='current')
        return False

    root, silent = logging.getLogger(), logging.NullHandler()
    root.addFilter(elsewhere)
    root.addHandler(silent)  # without any, the first warning would leave one that prints for good
    try:
        yield
    finally:
        root.removeHandler(silent)
        root.removeFilter(elsewhere)


def _reader(tools, name: str) -> type:
    """Made late: its base class is the runtime's."""

    class Images(tools.CalibrationDataReader):
        def __init__(self, batches: Iterable[np.ndarray]) -> None:
            self.batches = iter(batches)

        def get_next(self):
            images = next(self.batches, None)
            return None if images is None else {name: images}

    return Images

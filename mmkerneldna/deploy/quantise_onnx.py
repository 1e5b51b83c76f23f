"""int8 for onnxruntime: its static quantisation, in the QDQ form that every runtime of ONNX reads."""

import contextlib
import importlib
import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from mmengine.logging import print_log

from .quantise_graph import Operation, Selection, select
from .runtimes import require

#: node types that onnxruntime computes in int8, so that a quantised map passes through them
BETWEEN = (
    *('Add', 'Mul', 'Concat', 'Resize', 'MaxPool', 'AveragePool', 'GlobalAveragePool'),
    *('Relu', 'Clip', 'Sigmoid', 'LeakyRelu'),
)
LAYERS = ('Conv', 'MatMul', 'Gemm')


def read_selection(path: Path) -> Selection:
    """What of an ONNX file is quantised."""
    onnx = require('onnx')
    graph = onnx.shape_inference.infer_shapes(onnx.load(str(path))).graph
    values = [*graph.value_info, *graph.output]
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in values if value.type.tensor_type.HasField('shape')}
    constants = {tensor.name for tensor in graph.initializer}
    maker = {output: node for node in graph.node for output in node.output}
    constants |= {name for name, node in maker.items() if node.op_type == 'Constant'}
    return select(
        [
            Operation(
                node.name,
                node.op_type in LAYERS and any(name in constants for name in node.input[1:2]),
                tuple(maker[name].name for name in node.input if name in maker),
                ranks.get(node.output[0]),
            )
            for node in graph.node
        ]
    )


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
    nodes = [*selection.layers, *(name for name in selection.between if types[name] in BETWEEN)]
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
        )


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


def layer_outputs_onnx(path: Path, layers: Sequence[str], images: np.ndarray) -> dict[str, np.ndarray]:
    """What each layer of a file puts out for one batch.

    Args:
        path: of an ONNX file, quantised or not.
        layers: names of nodes.
        images: (N, 3, H, W).

    Returns:
        dict: name of a layer -> output. Layers that the file has no more are left out.
    """
    onnx, runtime = require('onnx'), require('onnxruntime')
    model = onnx.load(str(path))
    wanted = {node.name: node.output[0] for node in model.graph.node if node.name in set(layers)}
    known = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted.values() if name not in known)
    session = runtime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    values = session.run(list(wanted.values()), {session.get_inputs()[0].name: images})
    return dict(zip(wanted, values))


def _reader(tools, name: str) -> type:
    """Made late: its base class is the runtime's."""

    class Images(tools.CalibrationDataReader):
        def __init__(self, batches: Iterable[np.ndarray]) -> None:
            self.batches = iter(batches)

        def get_next(self):
            images = next(self.batches, None)
            return None if images is None else {name: images}

    return Images

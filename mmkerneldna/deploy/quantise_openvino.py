"""int8 for OpenVINO: post-training quantisation by NNCF."""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .quantise_graph import Operation, Selection, select
from .runtimes import require

LAYERS = ('Convolution', 'GroupConvolution', 'ConvolutionBackpropData', 'MatMul')
_CONSTANTS = ('Constant', 'Convert', 'FakeQuantize', 'Reshape', 'Multiply', 'Subtract')


def read_selection(path: Path) -> Selection:
    """What of an OpenVINO file is quantised."""
    return select([_operation(node) for node in require('openvino').Core().read_model(str(path)).get_ordered_ops()])


def quantise_openvino(path: Path, out: Path, batches: Sequence[np.ndarray], selection: Selection) -> None:
    """Write an int8 copy of an OpenVINO file.

    Args:
        path, out: of the float file, of the new one (``.xml``; the weights go beside it).
        batches: (N, 3, H, W) each, uint8: what the ranges of the activations are measured on.
        selection: what is quantised.
    """
    openvino, nncf = require('openvino'), require('nncf')
    nncf.set_log_level(logging.ERROR)
    model = openvino.Core().read_model(str(path))
    quantised = nncf.quantize(
        model,
        nncf.Dataset(list(batches)),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(batches),
        fast_bias_correction=False,  # layer after layer behind corrected ones: half the error that is left by the fast way
        # what is not part of NNCF's graph may be named too
        ignored_scope=nncf.IgnoredScope(names=list(selection.rest), validate=False),
    )
    openvino.save_model(quantised, str(out), compress_to_fp16=False)


def kernel_sizes_openvino(path: Path, layers: Collection[str]) -> dict[str, int]:
    """Layer of an OpenVINO file -> elements of its kernel or matrix."""
    nodes = {node.get_friendly_name(): node for node in require('openvino').Core().read_model(str(path)).get_ordered_ops()}
    return {name: int(np.prod(nodes[name].input(1).get_shape())) for name in layers}


def layer_outputs_openvino(path: Path, layers: Sequence[str], images: np.ndarray) -> dict[str, np.ndarray]:
    """As :func:`.onnx_values.layer_outputs_onnx`, of an OpenVINO file."""
    openvino = require('openvino')
    model = openvino.Core().read_model(str(path))
    wanted = [node for node in model.get_ordered_ops() if node.get_friendly_name() in set(layers)]
    model.add_outputs([node.output(0) for node in wanted])
    compiled = openvino.compile_model(model, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    outputs = compiled(images)
    values = [outputs[index] for index in range(len(outputs) - len(wanted), len(outputs))]
    return {node.get_friendly_name(): value for node, value in zip(wanted, values)}


def _operation(node: Any) -> Operation:
    inputs = [value.get_source_output().get_node() for value in node.inputs()]
    rank = node.output(0).get_partial_shape().rank if node.get_output_size() else None
    return Operation(
        node.get_friendly_name(),
        node.get_type_name() in LAYERS and len(inputs) > 1 and _is_constant(inputs[1]),
        tuple(source.get_friendly_name() for source in inputs),
        rank.get_length() if rank is not None and rank.is_static else None,
    )


def _is_constant(node: Any) -> bool:
    """A constant, or computed from constants alone (weights kept in half precision)."""
    if node.get_type_name() == 'Constant':
        return True
    inputs = [value.get_source_output().get_node() for value in node.inputs()]
    return node.get_type_name() in _CONSTANTS and bool(inputs) and all(map(_is_constant, inputs))

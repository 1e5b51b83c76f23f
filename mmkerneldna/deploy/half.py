"""Exported files with half the bytes: weights in fp16. OpenVINO computes in bf16 or fp16, onnxruntime on a CPU in fp32.

onnxruntime has no convolutions in fp16 for x86 CPUs. Its own converter puts casts around every layer, which win nothing there
and round every feature map; of detectors it makes files with two casts of one name, which don't load (1.31). So of an ONNX file
only the kernels are halved, with a cast behind each that onnxruntime computes once, when it loads the file.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .export_error import ExportError
from .file_meta import kind_of, read_meta, write_meta
from .quantise_onnx import LAYERS
from .runtimes import require
from .writers import whole_files_only

#: format of a file -> half precisions that it may be in
HALF = dict(openvino=('bf16', 'fp16'), onnx=('fp16',))


def write_half(path: str | Path, out: str | Path, dtype: str) -> None:
    """Write a copy of an fp32 file in half precision.

    Args:
        path, out: of one format, ``.onnx`` or ``.xml``.
        dtype: one of :data:`HALF`.

    Raises:
        ExportError: the format does not go with the precision, or the CPU or a weight does not.
        FileError: the file can't be read.
        RuntimeMissingError: what reads the format is not installed.
    """
    kind = kind_of(path)
    if dtype not in HALF.get(kind, ()):
        raise ExportError(f'dtype={dtype!r} of a file for {kind}: possible are {HALF}')
    (onnx_half if kind == 'onnx' else openvino_half)(path, out, dtype)


def onnx_half(path: str | Path, out: str | Path, dtype: str = 'fp16') -> None:
    """:func:`write_half` of an ONNX file.

    Raises:
        ExportError: a weight is too large for fp16.
    """
    onnx, meta = require('onnx'), read_meta(path)
    model = onnx.load(str(path))
    graph, casts = model.graph, []
    kernels = {name for node in graph.node if node.op_type in (*LAYERS, 'ConvTranspose') for name in node.input[1:2]}
    for tensor in graph.initializer:
        if tensor.name in kernels and tensor.data_type == onnx.TensorProto.FLOAT:
            name, values = tensor.name, onnx.numpy_helper.to_array(tensor)
            if not np.abs(values).max(initial=0) <= np.finfo(np.float16).max:
                raise ExportError(f'{name} has a weight of {np.abs(values).max():.3g}, too large for fp16: take fp32')
            tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), f'{name}.half'))
            casts.append(onnx.helper.make_node('Cast', [f'{name}.half'], [name], f'{name}.cast', to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    with whole_files_only(Path(out)) as draft:
        onnx.save(model, str(draft))
        write_meta(draft, replace(meta, dtype=dtype))


def openvino_half(path: str | Path, out: str | Path, dtype: str) -> None:
    """:func:`write_half` of an OpenVINO file, whose weights lie beside it; fp16 computes in fp32 on a CPU without it.

    Raises:
        ExportError: bf16 on a CPU without it.
    """
    check_precision(dtype)
    openvino, meta = require('openvino'), read_meta(path)
    with whole_files_only(Path(out)) as draft:
        openvino.save_model(openvino.Core().read_model(str(path)), str(draft), compress_to_fp16=True)
        write_meta(draft, replace(meta, dtype=dtype))


def check_precision(dtype: str) -> None:
    """Refuse a precision this CPU has no instructions for.

    Raises:
        ExportError: bf16 on a CPU without it.
    """
    able = capabilities(require('openvino')) if dtype == 'bf16' else []
    if dtype == 'bf16' and 'BF16' not in able:
        raise ExportError(f'this CPU computes no bf16 (OpenVINO lists {", ".join(able)}): take fp16, or int8')


def capabilities(openvino: Any) -> list[str]:
    """What OpenVINO computes fast on this CPU, such as 'FP32', 'BF16', 'INT8'."""
    return openvino.Core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES')

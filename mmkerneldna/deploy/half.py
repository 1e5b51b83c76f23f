"""OpenVINO files with half the bytes: weights in fp16, computing in bf16 or fp16."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from .export_error import ExportError
from .file_meta import read_meta, write_meta
from .runtimes import require
from .writers import whole_files_only


def openvino_half(path: str | Path, out: str | Path, dtype: str) -> None:
    """Write a copy of an fp32 OpenVINO file that computes in half precision.

    Args:
        path, out: ``.xml`` files; weights lie beside them.
        dtype: 'bf16' or 'fp16'. On a CPU without instructions for fp16 the weights are fp16 in the file, computing is fp32.

    Raises:
        ExportError: bf16 on a CPU without it.
        FileError: the file can't be read.
        RuntimeMissingError: OpenVINO is not installed.
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

"""Write a traceable module into a file, one function per format; a file gets its name only when it is whole."""

import contextlib
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import KernelDNAError
from ..torch_internals import write_aot_package
from .blame import layer_that_calls, missing_operator
from .export_error import ExportError
from .gates import say_what_is_whole
from .runtimes import require
from .scaled_conv import ScaledConv2d
from .traceable import traceable_resize

DYNAMIC = ('both', 'batch', 'none')
OPSET = 18
#: smallest side of the images of a pt2 file for any size: torch.export makes an exception of maps of one pixel, and
#: the coarsest map of a detector has a stride of 128
LEAST_SIDE = 160
#: format -> suffix of its file
SUFFIXES = dict(onnx='.onnx', openvino='.xml', pt2='.pt2', torchscript='.ts')


def write(
    part: nn.Module, example: Tensor, path: Path, file_format: str, dynamic: str, names: Sequence[str], multiple: int = 1
) -> dict[str, object]:
    """Write a module.

    Args:
        part (nn.Module): of one tensor, ``images``, that returns a tuple of tensors.
        example (Tensor): (N, 3, H, W), N > 1 where the batch is dynamic.
        path (Path): of the file, with the suffix of its format.
        file_format (str): a key of :data:`SUFFIXES`.
        dynamic (str): ``'both'`` for any batch and size, ``'batch'``, or ``'none'``.
        names (sequence): of the outputs.
        multiple (int): what sides are a multiple of in a dynamic pt2 file.

    Returns:
        dict: facts worth telling: ``opset`` of an ONNX file.

    A net whose gates leave parts out computes all of it in a file, and takes of that what the gates keep: the same outputs.

    Raises:
        RuntimeMissingError: what writes the format is not installed.
        ExportError: the exporter fails; an operator that the format lacks is named with its layer.
    """
    say_what_is_whole(part, 'the file')
    with torch.no_grad(), traceable_resize(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            return _WRITERS[file_format](part, example, path, dynamic, list(names), multiple)
        except KernelDNAError:
            raise
        except Exception as error:  # the exporters raise anything
            raise _explained(error, part, example, file_format, dynamic) from error


def _explained(error: Exception, part: nn.Module, example: Tensor, file_format: str, dynamic: str) -> ExportError:
    operator = missing_operator(error)
    if operator:
        layer = layer_that_calls(part, example, operator) or 'a layer'
        owner = dict(part.named_modules()).get(layer)
        named = layer if owner is None else f'{layer} ({type(owner).__name__})'
        return ExportError(f'{file_format} has no operator {operator!r}, which {named} needs: replace that layer')
    advice = '; try --dynamic batch or none' if dynamic == 'both' else ''
    return ExportError(f'the {file_format} export failed, {type(error).__name__}: {str(error)[:400]}{advice}')


@contextlib.contextmanager
def whole_files_only(path: Path) -> Iterator[Path]:
    """A name to write a file to, in a hidden folder beside it; what lies there moves to its place if nothing is raised."""
    with tempfile.TemporaryDirectory(prefix=f'.{path.name}.', dir=path.parent) as folder:
        yield Path(folder) / path.name
        written = sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name)  # what the file refers to goes first
        for file in written:
            shutil.move(file, path.parent / file.name)


def _write_onnx(part, example, path, dynamic, names, multiple) -> dict[str, object]:
    onnx = require('onnx')
    axes = {0: 'batch', **({2: 'height', 3: 'width'} if dynamic == 'both' else {})} if dynamic != 'none' else {}
    torch.onnx.export(
        part,
        (example,),
        str(path),
        opset_version=OPSET,
        dynamo=False,
        input_names=['images'],
        output_names=names,
        dynamic_axes={'images': axes, **{name: {0: 'batch'} for name in names}} if axes else None,
    )
    model = onnx.load(str(path))
    onnx.checker.check_model(model)
    return dict(opset=model.opset_import[0].version)


def _write_openvino(part, example, path, dynamic, names, multiple) -> dict[str, object]:
    openvino = require('openvino')
    with tempfile.TemporaryDirectory() as folder:
        middle = Path(folder) / 'model.onnx'
        _write_onnx(part, example, middle, dynamic, names, multiple)
        # converting multiplies factors into kernels, and so makes a kernel of each use of a shared one; reading does not
        shared = any(isinstance(m, ScaledConv2d) for m in part.modules())
        model = openvino.Core().read_model(str(middle)) if shared else openvino.convert_model(str(middle))
        openvino.save_model(model, str(path), compress_to_fp16=False)
    return {}


def _write_torchscript(part, example, path, dynamic, names, multiple) -> dict[str, object]:
    torch.jit.freeze(torch.jit.trace(part, example, check_trace=False)).save(str(path))
    return {}


def _write_pt2(part, example, path, dynamic, names, multiple) -> dict[str, object]:
    shapes = (_dynamic_dims(dynamic, multiple),)
    write_aot_package(torch.export.export(part, (example,), dynamic_shapes=shapes, strict=False), str(path))
    return {}


def _dynamic_dims(dynamic: str, multiple: int) -> dict[int, Any]:
    dims: dict[int, Any] = {} if dynamic == 'none' else {0: torch.export.Dim('batch', min=1, max=4096)}
    if dynamic == 'both':
        for axis, side in ((2, 'height'), (3, 'width')):
            if multiple > 1:
                dims[axis] = multiple * torch.export.Dim(side, min=1, max=256)
            else:
                dims[axis] = torch.export.Dim(side, min=LEAST_SIDE, max=8192)
    return dims


_WRITERS: dict[str, Callable[..., dict[str, object]]] = dict(
    onnx=_write_onnx, openvino=_write_openvino, pt2=_write_pt2, torchscript=_write_torchscript
)

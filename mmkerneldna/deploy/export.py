"""Export a deployed net to ONNX, TorchScript or an AOTInductor package, and check the file against torch.

A file takes images as the data preprocessor leaves them (normalised, padded), (N, 3, H, W) float32. What it returns:

=============  ===================================================================================================
scope          outputs
=============  ===================================================================================================
``backbone``   the feature maps
``neck``       backbone and neck: the feature maps behind the neck
``model``      a segmenter: logits at the size of the image. A detector: the raw outputs of its dense head (class scores and
               box deltas per level), without decoding and NMS; a two-stage detector: the neck's features and the raw outputs
               of its RPN, since the second stage waits for the selection of proposals, which is Python
=============  ===================================================================================================
"""

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..anatomy import backbone_of, has_proposals, heads_of, is_whole, task_of
from ..errors import KernelDNAError
from ..modules import slots
from ..torch_internals import read_aot_package, write_aot_package

SCOPES = ('backbone', 'neck', 'model')
DYNAMIC = ('both', 'batch', 'none')
#: largest deviation of a file from torch, relative to the largest value of an output
TOLERANCE = 1e-4
OPSET = 18


class ExportError(KernelDNAError, RuntimeError):
    """An export that failed or does not agree with torch; the message says what to change."""


class Exportable(nn.Module):
    """A part of a deployed model as a function of one tensor that returns a flat tuple of tensors.

    Args:
        model (nn.Module): from :func:`mmkerneldna.deploy.deployment.lean_copy`: a backbone or a whole model.
        scope (str): see the table above.

    Raises:
        ExportError: a scope the model does not have.
    """

    def __init__(self, model: nn.Module, scope: str) -> None:
        super().__init__()
        if scope not in SCOPES or (scope != 'backbone' and not is_whole(model)):
            raise ExportError(
                f'scope={scope!r} of a {type(model).__name__}: expected one of {SCOPES}, and only a detector or '
                'segmenter has more than a backbone'
            )
        self.model = backbone_of(model) if scope == 'backbone' else model
        self.scope = scope

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W) -> flat tuple of tensors."""
        return tuple(tree_leaves(self._outputs(images)))

    def _outputs(self, images: Tensor):
        if self.scope == 'backbone':
            return self.model(images)
        if self.scope == 'neck':
            return self.model.extract_feat(images)
        if has_proposals(self.model):
            features = self.model.extract_feat(images)
            return features, heads_of(self.model).dense[0].forward(features)
        outputs = self.model._forward(images, None)
        if task_of(self.model) == 'segmentation':
            return F.interpolate(outputs, images.shape[2:], mode='bilinear', align_corners=self.model.align_corners)
        return outputs


def export(
    model: nn.Module,
    path: Path,
    file_format: str,
    scope: str = 'backbone',
    size: tuple[int, int] = (224, 224),
    dynamic: str = 'both',
) -> dict[str, object]:
    """Write a file and check it.

    Args:
        model (nn.Module): deployed by :func:`lean_copy`, on the CPU.
        path (Path): of the file.
        file_format (str): ``'onnx'``, ``'torchscript'`` or ``'pt2'``.
        scope (str): see :class:`Exportable`.
        size (tuple): H, W of the example image.
        dynamic (str): ``'both'`` for any batch and size, ``'batch'``, or ``'none'``.

    Returns:
        dict: ``file``, ``inputs``, ``outputs``, ``checked`` (shapes and deviations), and ``opset`` for ONNX.

    Raises:
        ExportError: the exporter fails, or the file deviates from torch.
    """
    if file_format not in WRITERS or dynamic not in DYNAMIC:
        raise ExportError(f'format={file_format!r} must be one of {tuple(WRITERS)}, dynamic={dynamic!r} one of {DYNAMIC}')
    reference = Exportable(model, scope).eval()
    part = with_matrix_pools(deepcopy(reference))
    example = torch.randn(2 if dynamic != 'none' else 1, 3, *size, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad(), traceable_resize(), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            facts = WRITERS[file_format](part, example, Path(path), dynamic)
    except Exception as error:  # the exporters raise anything
        advice = "; try dynamic='batch' or 'none'" if dynamic == 'both' else ''
        raise ExportError(f'{file_format} of {scope} failed, {type(error).__name__}: {str(error)[:400]}{advice}') from error
    checked = check_file(reference, READERS[file_format](Path(path)), check_shapes(size, dynamic))
    return dict(file=str(path), inputs={'images': _describe(dynamic, size)}, checked=checked, **facts)


def check_shapes(size: tuple[int, int], dynamic: str) -> list[tuple[int, int, int]]:
    """(N, H, W) a file is checked at: batches 1 and 5, the example's size and one more, as far as they are dynamic."""
    height, width = size
    sizes = [(height, width), (height + 32, width + 64)] if dynamic == 'both' else [(height, width)]
    return [(batch, h, w) for batch in ((1,) if dynamic == 'none' else (1, 5)) for h, w in sizes]


@torch.no_grad()
def check_file(part: nn.Module, run: Callable[[Tensor], Sequence[Tensor]], shapes) -> dict[tuple[int, int, int], float]:
    """Compare a file with torch.

    Returns:
        dict: (N, H, W) -> deviation relative to the largest value.

    Raises:
        ExportError: beyond :data:`TOLERANCE`, or another number or shape of outputs.
    """
    deviations = {}
    for batch, height, width in shapes:
        images = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))
        expected, outputs = part(images), run(images)
        if [tuple(o.shape) for o in outputs] != [tuple(e.shape) for e in expected]:
            raise ExportError(
                f'at {(batch, height, width)} the file returns {[tuple(o.shape) for o in outputs]}, torch '
                f'{[tuple(e.shape) for e in expected]}'
            )
        worst = max(((o - e).abs().max() / e.abs().max()).item() for o, e in zip(outputs, expected))
        if not worst <= TOLERANCE:
            raise ExportError(f'at {(batch, height, width)} the file deviates from torch by {worst:.1e}')
        deviations[batch, height, width] = worst
    return deviations


class MatrixAdaptivePool(nn.Module):
    """``nn.AdaptiveAvgPool2d`` to a few bins as two matrix products, for pyramid pooling of maps of any size.

    ONNX has no adaptive pooling unless the bins divide the map. Bin i of b covers floor(i L / b) to ceil((i + 1) L / b).
    """

    def __init__(self, bins: tuple[int, int]) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, bins)."""
        rows, columns = (self._shares(x.shape[axis], bins, x) for axis, bins in zip((2, 3), self.bins))
        return rows @ x @ columns.transpose(0, 1)

    @staticmethod
    def _shares(length: int, bins: int, like: Tensor) -> Tensor:
        index, i = torch.arange(length, device=like.device), torch.arange(bins, device=like.device)[:, None]
        start = torch.div(i * length, bins, rounding_mode='floor')
        end = torch.div((i + 1) * length + bins - 1, bins, rounding_mode='floor')
        return ((index >= start) & (index < end)).to(like.dtype) / (end - start)


def with_matrix_pools(module: nn.Module) -> nn.Module:
    """Replace, in place, adaptive pools that exporters can't write; to a single bin they can."""
    for owner, name, child in slots(module):
        if isinstance(child, nn.AdaptiveAvgPool2d):
            size = child.output_size
            height, width = size if isinstance(size, tuple) else (size, size)
            if (height, width) != (1, 1) and height is not None and width is not None:
                setattr(owner, name, MatrixAdaptivePool((height, width)))
    return module


@contextlib.contextmanager
def traceable_resize() -> Iterator[None]:
    """mmseg's ``resize`` turns sizes into Python integers, constants of whatever is traced; leave them symbolic."""
    from mmseg.models.utils import resize as original

    def resize(input, size=None, scale_factor=None, mode='nearest', align_corners=None, warning=True):
        return F.interpolate(input, size, scale_factor, mode, align_corners)

    users: list[Any] = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith('mmseg.') and vars(module).get('resize') is original
    ]
    for module in users:
        module.resize = resize
    try:
        yield
    finally:
        for module in users:
            module.resize = original


def _describe(dynamic: str, size: tuple[int, int]) -> str:
    batch = 'N' if dynamic != 'none' else '1'
    return f'({batch}, 3, H, W)' if dynamic == 'both' else f'({batch}, 3, {size[0]}, {size[1]})'


def _dynamic_dims(dynamic: str) -> dict[int, Any]:
    """Sizes are multiples of 32, as the preprocessors pad them: then every stride divides without a remainder."""
    dims: dict[int, Any] = {} if dynamic == 'none' else {0: torch.export.Dim('batch', min=1, max=4096)}
    if dynamic == 'both':
        dims[2] = 32 * torch.export.Dim('height', min=1, max=256)
        dims[3] = 32 * torch.export.Dim('width', min=1, max=256)
    return dims


def _write_onnx(part, example, path, dynamic) -> dict[str, object]:
    axes = {0: 'batch', **({2: 'height', 3: 'width'} if dynamic == 'both' else {})} if dynamic != 'none' else {}
    names = [f'output{i}' for i in range(len(part(example)))]
    torch.onnx.export(
        part,
        (example,),
        str(path),
        opset_version=OPSET,
        dynamo=False,
        input_names=['images'],
        output_names=names,
        dynamic_axes=dict.fromkeys(['images', *names], axes) if axes else None,
    )
    import onnx

    model = onnx.load(str(path))
    onnx.checker.check_model(model)
    return dict(opset=model.opset_import[0].version, outputs=names)


def _read_onnx(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return lambda images: [torch.from_numpy(o) for o in session.run(None, {'images': images.numpy()})]


def _write_torchscript(part, example, path, dynamic) -> dict[str, object]:
    torch.jit.freeze(torch.jit.trace(part, example, check_trace=False)).save(str(path))
    return dict(outputs=[f'output{i}' for i in range(len(part(example)))])


def _read_torchscript(path):
    return torch.jit.load(str(path))


def _write_pt2(part, example, path, dynamic) -> dict[str, object]:
    program = torch.export.export(part, (example,), dynamic_shapes=(_dynamic_dims(dynamic),), strict=False)
    write_aot_package(program, str(path))
    return dict(outputs=[f'output{i}' for i in range(len(part(example)))])


def _read_pt2(path):
    return read_aot_package(str(path))


WRITERS = dict(onnx=_write_onnx, torchscript=_write_torchscript, pt2=_write_pt2)
READERS = dict(onnx=_read_onnx, torchscript=_read_torchscript, pt2=_read_pt2)

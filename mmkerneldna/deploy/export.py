"""Export a part of a deployed net, or its raw outputs, and check the file against torch; :mod:`.end2end` exports whole models.

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

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..anatomy import backbone_of, has_proposals, heads_of, is_whole, task_of
from .export_error import ExportError
from .file_meta import KINDS, FileMeta, write_meta
from .runners import FileRunner
from .traceable import with_matrix_pools
from .writers import DYNAMIC, SUFFIXES, whole_files_only, write

SCOPES = ('backbone', 'neck', 'model')
#: largest deviation of a file from torch, relative to the largest value of an output
TOLERANCE = 1e-4


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
        path (Path): of the file; its suffix is the format's.
        file_format (str): ``'onnx'``, ``'openvino'``, ``'pt2'`` or ``'torchscript'``.
        scope (str): see :class:`Exportable`.
        size (tuple): H, W of the example image.
        dynamic (str): ``'both'`` for any batch and size, ``'batch'``, or ``'none'``.

    Returns:
        dict: ``file``, ``inputs``, ``outputs``, ``checked`` (shapes and deviations), and ``opset`` for ONNX.

    Raises:
        ExportError: the exporter fails, or the file deviates from torch.
    """
    if file_format not in SUFFIXES or dynamic not in DYNAMIC:
        raise ExportError(f'format={file_format!r} must be one of {tuple(SUFFIXES)}, dynamic={dynamic!r} one of {DYNAMIC}')
    path = Path(path)
    if path.suffix != SUFFIXES[file_format]:
        raise ExportError(f'{path.name}: the name of a file of format {file_format} ends in {SUFFIXES[file_format]}')
    reference = Exportable(model, scope).eval()
    part = with_matrix_pools(deepcopy(reference))
    example = torch.randn(2 if dynamic != 'none' else 1, 3, *size, generator=torch.Generator().manual_seed(0))
    names = [f'output{i}' for i in range(len(reference(example)))]
    with whole_files_only(path) as unchecked:
        facts = write(part, example, unchecked, file_format, dynamic, names, multiple=32)
        if path.suffix in KINDS:
            write_meta(unchecked, _raw_meta(size, dynamic, names))
        checked = check_file(reference, open_raw(unchecked), check_shapes(size, dynamic))
    return dict(file=str(path), inputs={'images': _describe(dynamic, size)}, outputs=names, checked=checked, **facts)


def _raw_meta(size: tuple[int, int], dynamic: str, names: list[str]) -> FileMeta:
    return FileMeta(
        task='raw',
        input=dict(name='images', channels='as the data preprocessor leaves them', dtype='float32', pad_divisor=1),
        size=None if dynamic == 'both' else list(size),
        batch=1 if dynamic == 'none' else None,
        outputs=names,
    )


def open_raw(path: Path) -> Callable[[Tensor], Sequence[Tensor]]:
    """The function in a file of any format, from tensor to tensors."""
    if path.suffix == '.ts':
        return torch.jit.load(str(path))
    run = FileRunner(path)
    return lambda images: [torch.from_numpy(output) for output in run(images.numpy()).values()]


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


def _describe(dynamic: str, size: tuple[int, int]) -> str:
    batch = 'N' if dynamic != 'none' else '1'
    return f'({batch}, 3, H, W)' if dynamic == 'both' else f'({batch}, 3, {size[0]}, {size[1]})'

"""Export a whole model and check the file against torch before it gets its name."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...anatomy import is_whole, task_of
from ..deployment import lean_copy
from ..export_error import ExportError
from ..file_meta import FileMeta, read_meta, write_meta
from ..half import HALF, check_precision, write_half
from ..runners import FileRunner
from ..traceable import with_matrix_pools
from ..writers import DYNAMIC, LEAST_SIDE, OPSET, SUFFIXES, whole_files_only, write
from .agreement import Agreement
from .check import check, predict
from .detector import WholeDetector
from .operators import OnnxOperators, register_symbolics
from .plain import PlainOperators
from .segmenter import WholeSegmenter

FORMATS = ('onnx', 'openvino', 'pt2')


@dataclass
class EndToEnd:
    """What file to write.

    Attributes:
        path (Path): of the file; its suffix is the format's.
        file_format (str): ``'onnx'``, ``'openvino'`` or ``'pt2'``.
        size (tuple): H, W of the example, and of all images unless ``dynamic`` is ``'both'``.
        dynamic (str): ``'both'`` for any batch and size, ``'batch'``, or ``'none'``: one image of ``size``.
        config (str): name of the config, for the metadata.
        classes (list): their names, in the order of the labels.
        images (sequence): (3, H, W) uint8 BGR, to check with; generated ones if there are none.
        dtype (str): ``'fp32'``; ``'bf16'`` or ``'fp16'`` for OpenVINO, ``'fp16'`` for ONNX (see :mod:`..half`).
        shared (bool): the file holds shared kernels once, see :func:`mmkerneldna.deploy.deploy`.
    """

    path: Path
    file_format: str
    size: tuple[int, int] = (512, 512)
    dynamic: str = 'both'
    config: str = ''
    classes: list[str] = field(default_factory=list)
    images: Sequence[np.ndarray] = ()
    dtype: str = 'fp32'
    shared: bool = False

    def __post_init__(self) -> None:
        self.path = Path(self.path)
        if self.file_format not in FORMATS or self.dynamic not in DYNAMIC:
            raise ExportError(
                f'format={self.file_format!r} must be one of {FORMATS}, dynamic={self.dynamic!r} one of {DYNAMIC}'
            )
        if self.dtype not in ('fp32', *HALF.get(self.file_format, ())):
            raise ExportError(f'dtype={self.dtype!r} of format {self.file_format}: fp32 is for all, in half precision {HALF}')
        if self.path.suffix != SUFFIXES[self.file_format]:
            raise ExportError(
                f'{self.path.name}: a file of format {self.file_format} has a name that ends in {SUFFIXES[self.file_format]}'
            )

    @property
    def least_side(self) -> int:
        """Of the images the file takes."""
        return LEAST_SIDE if self.file_format == 'pt2' and self.dynamic == 'both' else 1


def export_whole(model: nn.Module, wanted: EndToEnd) -> tuple[FileMeta, Agreement]:
    """Write a file that takes pictures and returns what the model finds in them.

    Args:
        model (nn.Module): a trained detector or segmenter, on the CPU, in evaluation mode; it is left as it is.
        wanted (EndToEnd): the file.

    Returns:
        tuple: the file's metadata, and what the check found.

    Raises:
        ExportError: the model has a part that can't be exported, the exporter fails, or the file deviates from torch. Then
            there is no file.
    """
    check_precision(wanted.dtype)
    whole = whole_model(model, wanted.file_format, wanted.shared)
    images = wanted.images or generated_images(wanted.size)
    multiple = side_multiple(model, images[0]) if wanted.dynamic == 'both' else 1
    meta = _meta(whole, wanted, multiple)
    with whole_files_only(wanted.path) as unchecked:
        write(whole, _example(wanted), unchecked, wanted.file_format, wanted.dynamic, meta.outputs)
        write_meta(unchecked, meta)
        if wanted.dtype != 'fp32':
            write_half(unchecked, unchecked, wanted.dtype)
        agreement = check(model, FileRunner(unchecked), batches(images, wanted, multiple), bool(wanted.images))
    return read_meta(wanted.path), agreement


def whole_model(model: nn.Module, file_format: str, shared: bool = False) -> nn.Module:
    """The traceable form of a deployed copy.

    Raises:
        ExportError: neither a detector nor a segmenter, or one with a part that can't be exported.
    """
    if not is_whole(model):
        raise ExportError(f'{type(model).__name__} is neither a detector nor a segmenter: try --scope backbone')
    if task_of(model) == 'segmentation':
        return with_matrix_pools(WholeSegmenter(lean_copy(model, shared=shared))).eval()
    register_symbolics(OPSET)
    operators = PlainOperators if file_format == 'pt2' else OnnxOperators
    return with_matrix_pools(WholeDetector(lean_copy(model, shared=shared), operators)).eval()


def _meta(whole, wanted: EndToEnd, multiple: int) -> FileMeta:
    return FileMeta(
        task=whole.task,
        classes=wanted.classes,
        input=dict(
            name='images',
            channels='bgr',
            dtype='uint8',
            pad_divisor=whole.preprocess.divisor,
            least_side=wanted.least_side,
            side_multiple=multiple,
        ),
        size=None if wanted.dynamic == 'both' else list(wanted.size),
        batch=1 if wanted.dynamic == 'none' else None,
        outputs=list(whole.outputs),
        config=wanted.config,
        mask_threshold=_mask_threshold(whole),
    )


def _mask_threshold(whole) -> float | None:
    return float(whole.model.roi_head.test_cfg.mask_thr_binary) if whole.task == 'instance' else None


def _example(wanted: EndToEnd) -> Tensor:
    height, width = (max(side, wanted.least_side) for side in wanted.size)
    image = generated_images((height, width))[0]
    return torch.from_numpy(np.stack([image] * (1 if wanted.dynamic == 'none' else 2)))


def generated_images(size: tuple[int, int], count: int = 2) -> list[np.ndarray]:
    """Smooth random pictures, (3, H, W) uint8: white noise is nothing a network was trained on."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size, mode='bicubic').clamp(0, 1)
    return list((smooth * 255).to(torch.uint8).numpy())


def batches(images: Sequence[np.ndarray], wanted: EndToEnd, multiple: int = 1) -> list[np.ndarray]:
    """Batches that a file is checked with: each image, at the file's size where that is fixed, and where the batch is free the
    first image with its mirror image; where the size is free the first one also smaller, with odd sides."""
    least = wanted.least_side
    if wanted.dynamic != 'both':
        images = [resized(image, wanted.size) for image in images]
    images = [resized(image, (max(image.shape[1], least), max(image.shape[2], least))) for image in images]
    found = [image[None] for image in images]
    if wanted.dynamic != 'none':
        found.append(np.stack([images[0], images[0][:, :, ::-1]]))
    if wanted.dynamic == 'both':
        smaller = (max(side * 3 // 4 | 1, least) for side in images[0].shape[1:])
        height, width = (-(-side // multiple) * multiple for side in smaller)
        found.append(resized(images[0], (height, width))[None])
    return found


def side_multiple(model: nn.Module, image: np.ndarray) -> int:
    """What sides must be a multiple of: 1, or 32 where the model itself takes no image with odd sides (it pads none)."""
    try:
        list(predict(model, resized(image, (97, 129))[None]))
    except RuntimeError:
        return 32
    return 1


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(3, H, W) uint8 at another size, bilinear."""
    if image.shape[1:] == tuple(size):
        return image
    x = torch.nn.functional.interpolate(torch.from_numpy(image)[None].float(), size, mode='bilinear')
    return x[0].round().to(torch.uint8).numpy()

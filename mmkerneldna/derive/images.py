"""Unlabelled images as batches that a net takes: any folder, or the data set of a config."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, DefaultScope
from torch import Tensor, nn

from ..anatomy import task_of
from ..datasets.image_checks import faulty_images, spread
from .source import DeriveError, listed

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')
IMAGENET = dict(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))  # RGB, of 0..255
ZOOM = 1.5  # a crop's image has a short side of 1 to this many times the crop's


def image_files(folder: str) -> list[Path]:
    """All image files below ``folder``, sorted.

    Raises:
        DeriveError: no such folder, no image in it, or one that does not decode.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DeriveError(f'{folder} is not a folder; --images wants one with image files in it')
    files = sorted(path for path in root.rglob('*') if path.suffix.lower() in EXTENSIONS)
    if not files:
        raise DeriveError(f'no image below {folder}: looked for {", ".join(EXTENSIONS)}')
    faults = faulty_images(spread(list(map(str, files)), f'images below {folder}'))
    if faults:
        raise DeriveError(
            f"{len(faults)} of the images below {folder} can't be read: "
            f'{listed(f"{path} is {fault}" for path, fault in faults.items())}; remove them'
        )
    return files


class FolderImages:
    """Endless batches of random crops of the images in a folder, normalised as the model wants it.

    Args:
        folder (str): with image files, in subfolders too.
        model (nn.Module): its ``data_preprocessor`` normalises; without one by ImageNet's mean and spread.
        size (tuple[int, int]): H, W of a crop.
        batch (int): crops per batch.
        seed (int): each pass draws the same batches.

    Raises:
        DeriveError: see :func:`image_files`.
    """

    def __init__(self, folder: str, model: nn.Module, size: tuple[int, int], batch: int = 8, seed: int = 0) -> None:
        self.files, self.size, self.batch, self.seed = image_files(folder), size, batch, seed
        self.preprocessor = getattr(model, 'data_preprocessor', None)

    def __iter__(self) -> Iterator[Tensor]:
        draw = np.random.default_rng(self.seed)
        for chosen in _endless_order(len(self.files), self.batch, draw):
            yield self._normalise([self._crop(self.files[i], draw) for i in chosen])

    def _crop(self, path: Path, draw: np.random.Generator) -> Tensor:
        image, (height, width) = mmcv.imread(str(path)), self.size
        if image is None:
            raise DeriveError(f"{path} can't be read as an image; remove it")
        scale = max(height / image.shape[0], width / image.shape[1]) * draw.uniform(1, ZOOM)
        wide, high = (max(side, round(length * scale)) for side, length in zip((width, height), image.shape[1::-1]))
        image = mmcv.imresize(image, (wide, high))
        top, left = draw.integers(high - height + 1), draw.integers(wide - width + 1)
        crop = image[top : top + height, left : left + width]
        if draw.random() < 0.5:
            crop = crop[:, ::-1]
        return torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1)))

    def _normalise(self, crops: Sequence[Tensor]) -> Tensor:
        if self.preprocessor is not None:
            return self.preprocessor(dict(inputs=list(crops), data_samples=None), False)['inputs']
        mean, std = (torch.tensor(IMAGENET[name]).view(1, 3, 1, 1) for name in ('mean', 'std'))
        return (torch.stack(list(crops)).flip(1).float() - mean) / std  # read as BGR


class DatasetImages:
    """Endless batches from a config's training set, through its own pipeline; the labels are not looked at.

    Args:
        cfg (Config): with a ``train_dataloader``.
        model (nn.Module): the detector or segmenter whose ``data_preprocessor`` takes them.
        batch (int, optional): images per batch. Defaults to the data loader's.
        seed (int): each pass draws the same batches.

    Raises:
        DeriveError: the config has no training set, or it is empty.
    """

    def __init__(self, cfg: Config, model: nn.Module, batch: int | None = None, seed: int = 0) -> None:
        if 'train_dataloader' not in cfg or cfg.train_dataloader is None:
            raise DeriveError('the config has no train_dataloader: give a folder by --images')
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')):
            self.data = DATASETS.build(cfg.train_dataloader.dataset)
        if not len(self.data):
            raise DeriveError('the training set of the config is empty: give a folder by --images')
        self.batch, self.seed = batch or cfg.train_dataloader.get('batch_size', 1), seed
        self.model = model

    def __iter__(self) -> Iterator[Tensor]:
        draw = np.random.default_rng(self.seed)
        padded = task_of(self.model) == 'segmentation'  # mmseg pads to its crop size in training only
        for chosen in _endless_order(len(self.data), self.batch, draw):
            with _seeded(int(draw.integers(2**31))):
                samples = [self.data[int(i)] for i in chosen]
            yield self.model.data_preprocessor(pseudo_collate(samples), padded)['inputs']


def _endless_order(count: int, batch: int, draw: np.random.Generator) -> Iterator[list[int]]:
    """Indices, each once before any comes again, in batches of the same size."""
    waiting: list[int] = []
    while True:
        while len(waiting) < batch:
            waiting += draw.permutation(count).tolist()
        yield waiting[:batch]
        waiting = waiting[batch:]


class _seeded:
    """Pipelines draw from the global states of ``random`` and numpy: seed these, and put them back after."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __enter__(self) -> None:
        self.before = random.getstate(), np.random.get_state()
        random.seed(self.seed)
        np.random.seed(self.seed)

    def __exit__(self, *exc) -> None:
        random.setstate(self.before[0])
        np.random.set_state(self.before[1])

"""Calibration images for int8: the config's own training images, as its test pipeline hands them to a model."""

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from ..deploy.exported_model import as_uint8
from ..deploy.quantise import FEWEST_IMAGES
from ..errors import DataError, UsageError, one_line
from .predictions import innermost_dataset

DEFAULT_COUNT = 128


def calibration_images(cfg: Config, count: int = DEFAULT_COUNT, seed: int = 0) -> list[np.ndarray]:
    """Images of the training set, drawn at random, without augmentation.

    Args:
        cfg: with a ``train_dataloader``, for the images, and a ``test_dataloader``, for the pipeline.
        count: how many.
        seed: draws the same ones each time.

    Returns:
        list: (3, H, W) each, uint8, BGR.

    Raises:
        UsageError: fewer than :data:`.quantise.FEWEST_IMAGES` are asked for.
        DataError: the config has no training set, it has fewer images, or one can't be read.
    """
    if count < FEWEST_IMAGES:
        raise UsageError(f'--calib {count}: int8 needs at least {FEWEST_IMAGES} calibration images, 100 to 300 are usual')
    dataset = _dataset(cfg)
    if len(dataset) < count:
        raise DataError(
            f'--calib {count}: the training set of the config has {len(dataset)} images, too few; '
            + (f'ask for {len(dataset)} or fewer' if len(dataset) >= FEWEST_IMAGES else f'{FEWEST_IMAGES} are the least')
        )
    return [_image(dataset, int(index)) for index in np.random.default_rng(seed).permutation(len(dataset))[:count]]


def _dataset(cfg: Config):
    for split in ('train', 'test'):
        if not (cfg.get(f'{split}_dataloader') or {}).get('dataset'):
            raise DataError(f'the config has no {split}_dataloader with a dataset: calibration images are read by it')
    train, test = (innermost_dataset(cfg[f'{split}_dataloader'].dataset) for split in ('train', 'test'))
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')):
        try:
            return DATASETS.build(dict(train, pipeline=test.pipeline, test_mode=True))
        except (ValueError, TypeError, AssertionError, FileNotFoundError) as error:
            raise DataError(f'the training set, which calibration reads, can not be built: {one_line(error)}') from error


def _image(dataset, index: int) -> np.ndarray:
    try:
        return as_uint8(dataset[index]['inputs'])
    except Exception as error:  # readers and pipelines raise what they like
        path = dataset.get_data_info(index).get('img_path', f'number {index}')
        raise DataError(f'calibration image {path} can not be read, {one_line(error)}') from error

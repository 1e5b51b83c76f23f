"""Images of a config's test set, as its pipeline hands them to the data preprocessor, and the names of its classes."""

from itertools import islice

import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.logging import print_log
from mmengine.registry import DATASETS, DefaultScope

from ..errors import KernelDNAError, one_line


def test_set_of(cfg: Config):
    """The data set of a config's test data loader, or None where it can't be built here (its files are not there)."""
    loader = cfg.get('test_dataloader')
    if not loader:
        return None
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')):
        try:
            return DATASETS.build(loader.dataset)
        except (OSError, KernelDNAError, ValueError, KeyError, AssertionError) as error:
            print_log(f'no images of the test set: {one_line(error)}', logger='current')
            return None


def sample_images(cfg: Config, count: int) -> list[np.ndarray]:
    """Evenly spaced images of the test set.

    Args:
        cfg (Config): of an mmdet or mmseg model.
        count (int): how many, at most.

    Returns:
        list: (3, H, W) uint8 BGR; empty where the test set is not there.
    """
    dataset = test_set_of(cfg)
    if not dataset:
        return []
    places = dict.fromkeys(np.linspace(0, len(dataset) - 1, count).round().astype(int).tolist())
    return [dataset[place]['inputs'].numpy() for place in islice(places, count)]


def folder_images(cfg: Config, paths: list[str]) -> list[np.ndarray]:
    """Images of files, through the test pipeline without its annotations."""
    steps = [step for step in cfg.test_dataloader.dataset.pipeline if not str(step.get('type')).startswith('LoadAnnotations')]
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')):
        pipeline = Compose(steps)
        return [
            pipeline(dict(img_path=path, img_id=i, reduce_zero_label=False))['inputs'].numpy() for i, path in enumerate(paths)
        ]


def class_names(cfg: Config, checkpoint: dict) -> list[str]:
    """Names in the order of the labels: of the checkpoint, else of the test set; [] where neither knows."""
    meta = checkpoint.get('meta') or {}
    names = (meta.get('dataset_meta') or {}).get('classes') or meta.get('CLASSES')
    if not names:
        loader = cfg.get('test_dataloader') or {}
        names = (loader.get('dataset', {}).get('metainfo') or {}).get('classes')
    if not names:
        dataset = test_set_of(cfg)
        names = (getattr(dataset, 'metainfo', None) or {}).get('classes')
    return list(names or [])

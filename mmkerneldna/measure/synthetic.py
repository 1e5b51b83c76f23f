"""Images and annotations made of noise, the same in every process, without touching the global random state."""

from typing import Any

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from torch import Tensor

BOXES = 8


def synthetic_images(batch: int, size: tuple[int, int]) -> list[Tensor]:
    """``batch`` noise images, each (3, H, W) of uint8 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    return list(torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8, generator=generator))


def detection_batch(batch: int, size: tuple[int, int], with_mask: bool) -> dict[str, list[Any]]:
    """What mmdet's data loader yields: images, and samples with 8 boxes (and masks) of class 0 each.

    Args:
        batch (int): number of images.
        size (tuple[int, int]): H, W.
        with_mask (bool): whether to add box-shaped instance masks.
    """
    samples = [_detection_sample(index, size, with_mask) for index in range(batch)]
    return dict(inputs=synthetic_images(batch, size), data_samples=samples)


def segmentation_batch(batch: int, size: tuple[int, int]) -> dict[str, list[Any]]:
    """What mmseg's data loader yields: images, and samples whose pixels are all of class 0."""
    samples = [_segmentation_sample(size) for _ in range(batch)]
    return dict(inputs=synthetic_images(batch, size), data_samples=samples)


def _detection_sample(index: int, size: tuple[int, int], with_mask: bool) -> DetDataSample:
    sample = DetDataSample(
        metainfo=dict(
            img_id=index, img_path='', ori_shape=size, img_shape=size, scale_factor=(1.0, 1.0), flip=False, flip_direction=None
        )
    )
    boxes = _boxes(index, size)
    instances = InstanceData(bboxes=boxes, labels=torch.zeros(BOXES, dtype=torch.long))
    if with_mask:
        instances.masks = BitmapMasks(_box_masks(boxes, size), *size)
    sample.gt_instances = instances
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    return sample


def _boxes(seed: int, size: tuple[int, int]) -> Tensor:
    """(8, 4) boxes x1, y1, x2, y2 with sides of a tenth to a half of the image."""
    generator = torch.Generator().manual_seed(seed)
    extent = torch.tensor([size[1], size[0]], dtype=torch.float)
    sides = (0.1 + 0.4 * torch.rand(BOXES, 2, generator=generator)) * extent
    corner = torch.rand(BOXES, 2, generator=generator) * (extent - sides)
    return torch.cat([corner, corner + sides], dim=1)


def _box_masks(boxes: Tensor, size: tuple[int, int]) -> np.ndarray:
    masks = np.zeros((len(boxes), *size), dtype=np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.round().long().tolist()):
        mask[y1 : y2 + 1, x1 : x2 + 1] = 1
    return masks


def _segmentation_sample(size: tuple[int, int]) -> SegDataSample:
    sample = SegDataSample(
        metainfo=dict(
            img_path='',
            ori_shape=size,
            img_shape=size,
            pad_shape=size,
            scale_factor=(1.0, 1.0),
            flip=False,
            flip_direction=None,
        )
    )
    sample.gt_sem_seg = PixelData(data=torch.zeros(1, *size, dtype=torch.long))
    return sample

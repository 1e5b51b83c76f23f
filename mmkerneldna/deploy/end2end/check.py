"""A whole exported file against the model in torch, on the same images."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from mmdet.structures import DetDataSample
from mmseg.structures import SegDataSample
from torch import nn

from ...anatomy import task_of
from ..runners import FileRunner
from .agreement import TOLERANCES, Agreement, Comparison, without_empty_places


def check(model: nn.Module, run: FileRunner, batches: Sequence[np.ndarray], real: bool) -> Agreement:
    """Compare a file with a model.

    Args:
        model (nn.Module): the detector or segmenter itself, as trained.
        run (FileRunner): the file.
        batches (sequence): (N, 3, H, W) uint8, as the test pipeline hands them to the data preprocessor.
        real (bool): whether they are images of the data set.

    Raises:
        ExportError: they don't agree.
    """
    comparison = Comparison(TOLERANCES[run.meta.dtype], score_floor(model))
    for images in batches:
        outputs = run(images)
        comparison.found.images.append([len(images), *images.shape[2:]])
        for place, sample in enumerate(predict(model, images)):
            _compare(comparison, {name: output[place] for name, output in outputs.items()}, sample, run.meta.mask_threshold)
    comparison.found.real = real
    return comparison.verdict()


def _compare(comparison: Comparison, outputs: dict[str, np.ndarray], sample, mask_threshold: float | None) -> None:
    if 'labels_map' in outputs:
        comparison.label_map(outputs['labels_map'], sample.pred_sem_seg.data[0].numpy())
        return
    expected = sample.pred_instances
    boxes = np.concatenate([expected.bboxes.numpy(), expected.scores.numpy()[:, None]], 1), expected.labels.numpy()
    found = without_empty_places(*outputs.values())
    pairs = comparison.detections((found[0], found[1]), boxes, len(outputs['labels']))
    if 'masks' in outputs and pairs:
        mine, theirs = (list(places) for places in zip(*pairs))
        pasted = paste(found[2][mine], found[0][mine], sample.ori_shape, mask_threshold or 0.5)
        comparison.masks(pasted, expected.masks.numpy()[theirs])


def paste(masks: np.ndarray, dets: np.ndarray, size: tuple[int, int], threshold: float) -> np.ndarray:
    """Masks of boxes -> masks of the image, by mmdet's own function.

    Args:
        masks (ndarray): (M, h, w), probabilities.
        dets (ndarray): (M, 4 or 5), x1, y1, x2, y2 in pixels of the image.
        size (tuple): H, W of the image.
        threshold (float): from which probability on a pixel belongs to the object.

    Returns:
        ndarray: (M, H, W), bool.
    """
    pasted, _ = _do_paste_mask(
        torch.from_numpy(masks)[:, None].float(), torch.from_numpy(dets[:, :4].copy()), *size, skip_empty=False
    )
    return (pasted >= threshold).numpy()


@torch.no_grad()
def predict(model: nn.Module, images: np.ndarray) -> Iterator:
    """The data samples that a model's own ``test_step`` returns for a batch of images of one size."""
    size = images.shape[2:]
    sample = DetDataSample if task_of(model) == 'detection' else SegDataSample
    samples = [sample(metainfo=dict(ori_shape=size, img_shape=size, pad_shape=size, scale_factor=(1.0, 1.0))) for _ in images]
    yield from model.test_step(dict(inputs=[torch.from_numpy(image) for image in images], data_samples=samples))


def score_floor(model: nn.Module) -> float:
    """The score below which a detector drops boxes; 0 of any other model."""
    test_cfg = getattr(model, 'test_cfg', None) or {}
    return float((test_cfg.get('rcnn') or test_cfg).get('score_thr', 0.0))

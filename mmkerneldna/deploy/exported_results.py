"""What an exported file returns, in the coordinates of the original image, as mmdet and mmseg return it."""

from collections.abc import Mapping

import numpy as np
import torch
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor
from torch.nn import functional as F

from .file_meta import FileMeta

#: where a file does not say from which probability on a pixel belongs to an object
MASK_THRESHOLD = 0.5


def fill_detections(sample: BaseDataElement, outputs: Mapping[str, np.ndarray], meta: FileMeta) -> BaseDataElement:
    """Put boxes, scores, labels and perhaps masks into a sample as ``pred_instances``.

    Args:
        sample (BaseDataElement): its ``ori_shape`` and ``scale_factor`` (w, h) say how the image was resized.
        outputs: of one image. ``dets`` (K, 5) in pixels of the resized image and ``labels`` (K,), -1 where a place is empty;
            ``masks`` (K, h, w), probabilities inside the boxes, or at the size of the image.
        meta (FileMeta): of the file.

    Returns:
        BaseDataElement: the sample.
    """
    labels = torch.from_numpy(outputs['labels']).long()
    kept = labels >= 0
    dets = torch.from_numpy(outputs['dets']).float()[kept]
    boxes = dets[:, :4] / dets.new_tensor(sample.metainfo.get('scale_factor', (1.0, 1.0))).repeat(2)
    found = InstanceData(bboxes=boxes, scores=dets[:, 4], labels=labels[kept])
    if 'masks' in outputs:
        masks = torch.from_numpy(np.ascontiguousarray(outputs['masks']))[kept].float()
        threshold = MASK_THRESHOLD if meta.mask_threshold is None else meta.mask_threshold
        found.masks = paste_masks(masks, boxes, sample.metainfo['img_shape'][:2], sample.metainfo['ori_shape'][:2], threshold)
    sample.pred_instances = found
    return sample


def paste_masks(
    masks: Tensor, boxes: Tensor, image_size: tuple[int, int], size: tuple[int, int], threshold: float = MASK_THRESHOLD
) -> Tensor:
    """Masks of the original image: inside boxes they are stretched over these, those of a whole image are resized.

    Args:
        masks (Tensor): (K, h, w), probabilities.
        boxes (Tensor): (K, 4) in pixels of the original image.
        image_size (tuple[int, int]): H, W of the image that the file got; masks of this size are those of a whole image.
        size (tuple[int, int]): H, W of the original image.
        threshold (float): a pixel belongs to an object from this probability on.

    Returns:
        Tensor: (K, H, W) of bool.
    """
    pasted = torch.zeros(len(masks), *size, dtype=torch.bool)
    if tuple(masks.shape[1:]) == tuple(image_size):
        if len(masks):
            pasted = F.interpolate(masks[:, None], size, mode='bilinear', align_corners=False)[:, 0] >= threshold
        return pasted
    for index in range(len(masks)):  # one by one only the pixels around a box are computed
        one = slice(index, index + 1)
        values, (rows, columns) = _do_paste_mask(masks[one, None], boxes[one], *size, skip_empty=True)
        pasted[index, rows, columns] = values[0] >= threshold
    return pasted


def fill_label_map(sample: BaseDataElement, labels: np.ndarray) -> BaseDataElement:
    """Put a label map into a sample as ``pred_sem_seg``, at the size of the original image.

    Args:
        sample (BaseDataElement): its ``ori_shape`` is the size.
        labels (ndarray): (H, W) of the resized image.

    Returns:
        BaseDataElement: the sample.
    """
    size = sample.metainfo.get('ori_shape', labels.shape)[:2]
    sample.pred_sem_seg = PixelData(data=resize_label_map(torch.from_numpy(labels).long(), size)[None])
    return sample


def resize_label_map(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a label map by its classes' areas: each is resized bilinearly, and each pixel goes to the largest.

    A network's logits are resized like that before the largest is taken; taking the nearest label instead leaves steps along
    every border. Classes that are not there cost nothing.

    Args:
        labels (Tensor): (H, W) of whole numbers.
        size (tuple[int, int]): H', W'.

    Returns:
        Tensor: (H', W').
    """
    if tuple(labels.shape) == tuple(size):
        return labels
    best = torch.full(size, -1.0)
    resized = labels.new_zeros(size)
    for label in labels.unique():
        share = F.interpolate((labels == label).float()[None, None], size, mode='bilinear', align_corners=False)[0, 0]
        resized = torch.where(share > best, label, resized)
        best = torch.maximum(best, share)
    return resized

"""A detector from a picture's bytes to boxes, and masks."""

import torch
from mmdet.models import SingleStageDetector, TwoStageDetector
from torch import Tensor, nn

from ..export_error import ExportError
from .dense import DenseBoxes
from .preprocess import Preprocess
from .regions import RegionBoxes, RegionMasks


class WholeDetector(nn.Module):
    """Preprocessing, network, decoding, RoIAlign and NMS.

    Args:
        model (nn.Module): a deployed mmdet detector with one or two stages.
        operators: :class:`.operators.OnnxOperators` or :class:`.plain.PlainOperators`.

    Raises:
        ExportError: a detector or a part of one that works in a way of its own.
    """

    def __init__(self, model: nn.Module, operators) -> None:
        super().__init__()
        self.preprocess, self.model = Preprocess(model.data_preprocessor), model
        self.masks, self.regions = None, None
        if isinstance(model, TwoStageDetector) and model.with_rpn and model.with_roi_head:
            self.boxes = DenseBoxes(model.rpn_head, 'rpn_head', operators)
            self.regions = RegionBoxes(model.roi_head, operators)
            self.masks = RegionMasks(model.roi_head, operators) if model.roi_head.with_mask else None
        elif isinstance(model, SingleStageDetector):
            self.boxes = DenseBoxes(model.bbox_head, 'bbox_head', operators)
        else:
            raise ExportError(f'{type(model).__name__} is neither a SingleStageDetector nor a TwoStageDetector: not exported')
        self.task = 'instance' if self.masks is not None else 'detection'
        self.outputs = ('dets', 'labels', 'masks')[: 3 if self.masks is not None else 2]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W) uint8, BGR -> dets (N, K, 5), labels (N, K), and masks (N, K, h, w)."""
        size = images.shape[2], images.shape[3]
        maps = self.model.extract_feat(self.preprocess(images))
        boxes, scores, labels = self.boxes(maps, size)
        if self.regions is not None:
            boxes, scores, labels = self.regions(maps, boxes, scores > 0, size)
        dets = torch.cat([boxes, scores[..., None]], -1)
        return (dets, labels) if self.masks is None else (dets, labels, self.masks(maps, boxes, labels))

"""The second stage: features of regions, boxes of classes, masks.

Letters: N images, P proposals and K boxes of an image, R regions that are there, C classes.
"""

from typing import Any

import torch
from mmcv.ops import RoIAlign
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from torch import Tensor, nn

from ..export_error import ExportError
from .boxes import check_coder, decode
from .dense import best, nms_settings, positive

PATH = 'roi_head'


class RegionFeatures(nn.Module):
    """RoIAlign of regions, each on the level of its size.

    Args:
        extractor (nn.Module): mmdet's.
        path (str): of it in the model.
        operators: whose ``roi_align`` is used.

    Raises:
        ExportError: another extractor than the single-level one, or another pooling than RoIAlign's average.
    """

    def __init__(self, extractor: nn.Module, path: str, operators) -> None:
        super().__init__()
        layers: Any = getattr(extractor, 'roi_layers', [None])
        if type(extractor) is not SingleRoIExtractor or type(layers[0]) is not RoIAlign or layers[0].pool_mode != 'avg':
            raise ExportError(
                f'{path} is a {type(extractor).__name__} of {type(layers[0]).__name__}: only '
                'SingleRoIExtractor of RoIAlign (average) can be exported'
            )
        self.extractor, self.operators = extractor, operators

    def forward(self, features, images: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Maps, (R,) and (R, 4) -> (R, C, h, w) and which region each row is, (R,)."""
        features = [feature.float() for feature in features[: self.extractor.num_inputs]]
        levels = self.extractor.map_roi_levels(torch.cat([boxes[:, :1], boxes], 1), len(features))
        return self.operators.roi_align(features, levels, images, boxes, self.extractor.roi_layers)


class RegionBoxes(nn.Module):
    """Boxes of classes from proposals.

    Args:
        head (nn.Module): mmdet's ``roi_head``.
        operators: see :class:`.dense.DenseBoxes`.

    Raises:
        ExportError: a part that works in a way of its own.
    """

    def __init__(self, head: nn.Module, operators) -> None:
        super().__init__()
        kind: Any = type(head)
        if any(getattr(kind, name, None) is not getattr(StandardRoIHead, name) for name in ('_bbox_forward', 'predict_bbox')):
            raise ExportError(f'{PATH} is a {kind.__name__}: only those that predict as StandardRoIHead does can be exported')
        own: Any = type(head.bbox_head)
        if own._predict_by_feat_single is not BBoxHead._predict_by_feat_single or head.bbox_head.custom_cls_channels:
            raise ExportError(f'{PATH}.bbox_head is a {own.__name__}, which predicts in a way of its own: not exported')
        check_coder(head.bbox_head.bbox_coder, f'{PATH}.bbox_head')
        self.head, self.operators = head, operators
        self.features = RegionFeatures(head.bbox_roi_extractor, f'{PATH}.bbox_roi_extractor', operators)
        self.limit = positive(head.test_cfg, 'max_per_img', PATH)
        self.iou, self.agnostic = nms_settings(head.test_cfg.nms, PATH)

    def forward(self, maps, proposals: Tensor, there: Tensor, size) -> tuple[Tensor, Tensor, Tensor]:
        """Maps, (N, P, 4), (N, P) bool -> boxes (N, K, 4), scores (N, K), labels (N, K); score 0: no box."""
        regions, images, boxes = listed(self.operators, proposals, there)
        rows, order = self.features(maps, images, boxes)
        if self.head.with_shared_head:
            rows = self.head.shared_head(rows)
        logits, deltas = self.head.bbox_head(rows.to(dtype_of(self.head.bbox_head)))
        regions, boxes = regions[order], boxes[order]
        deltas = deltas.float().reshape(deltas.shape[0], -1, 4)
        priors = boxes[:, None].expand(-1, deltas.shape[1], -1)
        found = decode(self.head.bbox_head.bbox_coder, priors, deltas, size)
        scores = logits.float().softmax(-1)[:, :-1]
        scores = scores * (scores > self.head.test_cfg.score_thr)
        shape = there.shape
        return self._select(spread(scores, regions, shape) * there[..., None], spread(found, regions, shape))

    def _select(self, scores: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, P, C), (N, P, C or 1, 4) -> the boxes left by NMS."""
        images, places, classes = scores.shape
        boxes = boxes.expand(-1, -1, classes, -1).permute(0, 2, 1, 3)
        scores = scores.permute(0, 2, 1)
        labels = torch.arange(classes)[:, None].expand(classes, places).reshape(1, -1).expand(images, -1)
        group = (lambda x: x.flatten(1, 2)) if self.agnostic else (lambda x: x.flatten(0, 1))
        kept = self.operators.keep(group(boxes), group(scores), self.iou, self.limit).reshape(scores.shape)
        return best(self.operators, boxes.flatten(1, 2), (scores * kept).flatten(1), labels, self.limit)


class RegionMasks(nn.Module):
    """Masks of boxes, as probabilities on the box.

    Args:
        head (nn.Module): mmdet's ``roi_head``.
        operators: see :class:`.dense.DenseBoxes`.

    Raises:
        ExportError: a mask head that predicts in a way of its own.
    """

    def __init__(self, head: nn.Module, operators) -> None:
        super().__init__()
        own: Any = type(head.mask_head)
        if not isinstance(head.mask_head, FCNMaskHead) or own.predict_by_feat is not FCNMaskHead.predict_by_feat:
            raise ExportError(f'{PATH}.mask_head is a {own.__name__}: it predicts in a way of its own')
        self.head = head
        self.features = RegionFeatures(head.mask_roi_extractor, f'{PATH}.mask_roi_extractor', operators)

    def forward(self, maps, boxes: Tensor, labels: Tensor) -> Tensor:
        """Maps, (N, K, 4), (N, K) -> (N, K, h, w), zeros in empty places."""
        regions, images, listed_boxes = listed(self.features.operators, boxes, labels >= 0)
        rows, order = self.features(maps, images, listed_boxes)
        if self.head.with_shared_head:
            rows = self.head.shared_head(rows)
        logits = self.head.mask_head(rows.to(dtype_of(self.head.mask_head))).float()
        regions = regions[order]
        if self.head.mask_head.class_agnostic:
            own = logits[:, 0]
        else:
            classes = labels.flatten()[regions].clamp(min=0)
            own = logits.gather(1, classes[:, None, None, None].expand(-1, 1, *logits.shape[2:]))[:, 0]
        return spread(own.sigmoid(), regions, labels.shape) * (labels >= 0)[..., None, None]


def listed(operators, boxes: Tensor, there: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The boxes to compute, one after the other.

    Args:
        operators: whose ``present`` is used.
        boxes: (N, P, 4).
        there: (N, P), bool.

    Returns:
        tuple: which of the N * P places, (R,), its image (R,), and box (R, 4).
    """
    regions = operators.present(there)
    return regions, torch.div(regions, there.shape[1], rounding_mode='floor'), boxes.flatten(0, 1)[regions]


def spread(rows: Tensor, regions: Tensor, shape) -> Tensor:
    """Rows back to their places, (R, ...) -> (N, P, ...), zeros elsewhere."""
    places = rows.new_zeros(shape[0] * shape[1], *rows.shape[1:])
    places[regions] = rows
    return places.reshape(shape[0], shape[1], *rows.shape[1:])


def dtype_of(module: nn.Module) -> torch.dtype:
    """What a module computes in."""
    return next(module.parameters()).dtype

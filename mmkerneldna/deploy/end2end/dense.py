"""One-stage heads and region proposal networks: from the maps of a dense head to boxes.

Letters: N images, M candidates of all levels, K boxes per image at the end.
"""

from typing import Any

import torch
from mmdet.models.dense_heads import RPNHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from torch import Tensor, nn

from ...routing.sparse_query import SparseQuery
from ..export_error import ExportError
from .boxes import check_coder, decode, place_of


class DenseBoxes(nn.Module):
    """The best boxes of a dense head: top-k of each level, decoding, NMS, the best K of each image.

    Args:
        head (nn.Module): of mmdet.
        path (str): of the head in the model, for messages.
        operators: :class:`.operators.OnnxOperators` or :class:`.plain.PlainOperators`.

    Raises:
        ExportError: a head that predicts in a way of its own, or settings of NMS that have no counterpart.
    """

    def __init__(self, head: nn.Module, path: str, operators) -> None:
        super().__init__()
        kind: Any = type(head)
        base = RPNHead if isinstance(head, RPNHead) else BaseDenseHead
        if any(getattr(kind, name, None) not in (getattr(base, name), getattr(SparseQuery, name, None)) for name in OWN):
            raise ExportError(f'{path} is a {kind.__name__}, which turns its maps into boxes in a way of its own: not exported')
        check_coder(head.bbox_coder, path)
        self.head, self.operators = head, operators
        self.proposes = base is RPNHead
        self.count = positive(head.test_cfg, 'nms_pre', path)
        self.limit = positive(head.test_cfg, 'max_per_img', path)
        self.iou, self.agnostic = nms_settings(head.test_cfg.get('nms'), path)
        self.least_score = -1.0 if self.proposes else head.test_cfg.get('score_thr', 0)

    def forward(self, features, size) -> tuple[Tensor, Tensor, Tensor]:
        """Maps of all levels, and H, W of the images -> boxes (N, K, 4), scores (N, K), labels (N, K); score 0: no box."""
        cls, reg, *factors = self.head(features)
        queried = self.head.queried(features) if isinstance(self.head, SparseQuery) else None
        levels = [
            self._level(index, maps[0], maps[1], maps[2] if factors else None, size, queried if index == 0 else None)
            for index, maps in enumerate(zip(cls, reg, *factors))
        ]
        boxes, scores, labels = (torch.cat(parts, 1) for parts in zip(*levels))
        scores = self._without_small(boxes, scores)
        rivals = boxes if self.agnostic else boxes + (labels * (boxes.amax() + 1))[..., None]
        scores = scores * self.operators.keep(rivals, scores, self.iou, self.limit)
        return best(self.operators, boxes, scores, labels, self.limit)

    def _level(self, index, cls: Tensor, reg: Tensor, factor: Tensor | None, size, where: Tensor | None) -> tuple[Tensor, ...]:
        """The most probable (prior, class) pairs of a level, ``where`` it is looked at; a score of 0 is below the threshold."""
        priors = self.head.prior_generator.single_level_grid_priors(cls.shape[2:], index, torch.float32, 'cpu')
        scores = self._probabilities(_rows(cls, self.head.cls_out_channels))
        if where is not None:
            scores = scores * _rows(where.expand(-1, self.head.prior_generator.num_base_priors[0], -1, -1), 1)
        classes, total = scores.shape[2], scores.flatten(1)
        chosen, places = self.operators.top(torch.where(total > self.least_score, total, 0), self.count)
        rows = torch.div(places, classes, rounding_mode='floor')
        boxes = decode(self.head.bbox_coder, priors[rows], place_of(_rows(reg, 4), rows), size)
        if factor is not None:
            chosen = chosen * _rows(factor, 1)[..., 0].sigmoid().gather(1, rows)
        labels = torch.full_like(rows, index) if self.proposes else places - rows * classes
        return boxes, chosen, labels

    def _probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() if self.head.use_sigmoid_cls else logits.softmax(-1)[..., :-1]

    def _without_small(self, boxes: Tensor, scores: Tensor) -> Tensor:
        least = self.head.test_cfg.get('min_bbox_size', -1)
        if least < 0:
            return scores
        sides = boxes[..., 2:] - boxes[..., :2]
        return scores * ((sides[..., 0] > least) & (sides[..., 1] > least))


#: methods a head may not have of its own
OWN = ('predict', 'predict_by_feat', '_predict_by_feat_single', '_bbox_post_process')


def _rows(maps: Tensor, channels: int) -> Tensor:
    """(N, A * D, H, W) -> (N, H * W * A, D), float32."""
    return maps.float().permute(0, 2, 3, 1).reshape(maps.shape[0], -1, channels)


def best(operators, boxes: Tensor, scores: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``count`` boxes of each image with the highest scores, all places filled.

    Args:
        operators: whose ``top`` is used.
        boxes, scores, labels: (N, M, 4), (N, M), (N, M); a score of 0 is no box.

    Returns:
        tuple: (N, count, 4), (N, count), (N, count); an empty place has zeros and label -1.
    """
    empty = scores.new_zeros(scores.shape[0], count)
    scores, places = operators.top(torch.cat([scores, empty], 1), count)
    boxes = place_of(torch.cat([boxes, empty[..., None].expand(-1, -1, 4)], 1), places)
    labels = torch.cat([labels, empty.to(labels.dtype)], 1).gather(1, places)
    there = scores > 0
    return boxes * there[..., None], scores, torch.where(there, labels, -1)


def positive(cfg, name: str, path: str) -> int:
    """A number of a test_cfg that must be there.

    Raises:
        ExportError: names it.
    """
    value = cfg.get(name, -1)
    if value <= 0:
        raise ExportError(f'{path}: test_cfg.{name}={value}, a file needs a positive number: set it by --cfg-options')
    return int(value)


def nms_settings(cfg, path: str) -> tuple[float, bool]:
    """IoU threshold, and whether classes compete.

    Raises:
        ExportError: soft NMS or others.
    """
    cfg = dict(cfg or {})
    kind, iou, agnostic = cfg.pop('type', 'nms'), cfg.pop('iou_threshold', None), cfg.pop('class_agnostic', False)
    cfg.pop('split_thr', None)
    if kind != 'nms' or iou is None or cfg:
        raise ExportError(
            f"{path}: test_cfg.nms of type {kind!r} with iou_threshold={iou} {cfg or ''} can't be exported: only type='nms' "
            'with iou_threshold (and class_agnostic)'
        )
    return float(iou), bool(agnostic)

"""Top-k, NMS and RoIAlign in two forms: as operators that become one ONNX node each, and in plain torch (see :mod:`.plain`).

Letters: G groups of boxes that compete with each other only (images, or classes of images), n boxes of a group, R regions.
"""

from collections.abc import Sequence

import mmcv.ops
import torch
from torch import Tensor


class OnnxOperators:
    """Operators of standard ONNX. In torch they run too: a trace needs their results."""

    @staticmethod
    def top(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The largest values of each row, (G, n) -> (G, k) and their places, k = min(count, n)."""
        return torch.ops.mmkerneldna.top(values, count)

    @staticmethod
    def keep(boxes: Tensor, scores: Tensor, iou: float, limit: int) -> Tensor:
        """Non-maximum suppression.

        Args:
            boxes: (G, n, 4), x1, y1, x2, y2.
            scores: (G, n); those of 0 and below are never kept.
            iou: a box is dropped where one that is kept and has a higher score overlaps it more.
            limit: most boxes kept of a group.

        Returns:
            Tensor: (G, n), bool.
        """
        selected = torch.ops.mmkerneldna.nms(boxes, scores[:, None], limit, iou)
        kept = torch.zeros_like(scores)
        kept[selected[:, 0], selected[:, 2]] = 1.0
        return kept > 0

    @staticmethod
    def present(there: Tensor) -> Tensor:
        """Which places are to be computed, (N, P) bool -> (R,); the very first always, so that there is one."""
        first = torch.arange(there.numel()).reshape(there.shape) == 0
        return (there | first).flatten().nonzero().squeeze(1)

    @staticmethod
    def roi_align(features: Sequence[Tensor], levels: Tensor, images: Tensor, boxes: Tensor, layers) -> tuple[Tensor, Tensor]:
        """RoIAlign of each region on the map of its level.

        Args:
            features: (N, C, H, W) per level.
            levels: (R,), index into ``features``.
            images: (R,), index of the image.
            boxes: (R, 4), in pixels of the image.
            layers (sequence): mmcv's RoIAlign of each level.

        Returns:
            tuple: (R, C, h, w), level by level, and which region each row is, (R,).
        """
        rows, order = [], []
        for index, (feature, layer) in enumerate(zip(features, layers)):
            here = (levels == index).nonzero().squeeze(1) if len(features) > 1 else torch.arange(len(levels))
            height, width = layer.output_size
            settings = height, width, layer.spatial_scale, layer.sampling_ratio, layer.aligned
            rows.append(torch.ops.mmkerneldna.roi_align(feature, boxes[here], images[here], *settings))
            order.append(here)
        return torch.cat(rows), torch.cat(order)


@torch.library.custom_op('mmkerneldna::top', mutates_args=())
def _top(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    best, places = values.topk(min(count, values.shape[1]))
    return best.clone(), places.clone()


@torch.library.custom_op('mmkerneldna::nms', mutates_args=())
def _nms(boxes: Tensor, scores: Tensor, limit: int, iou: float) -> Tensor:
    selected = []
    for group, (own, values) in enumerate(zip(boxes, scores[:, 0])):
        there = (values > 0).nonzero().squeeze(1)
        places = there[mmcv.ops.nms(own[there], values[there], iou)[1][:limit]]
        selected.append(torch.stack([torch.full_like(places, group), torch.zeros_like(places), places], 1))
    return torch.cat(selected)


@torch.library.custom_op('mmkerneldna::roi_align', mutates_args=())
def _roi_align(
    feature: Tensor, boxes: Tensor, images: Tensor, height: int, width: int, scale: float, samples: int, aligned: bool
) -> Tensor:
    rois = torch.cat([images[:, None].to(boxes), boxes], 1)
    return mmcv.ops.roi_align(feature.contiguous(), rois, (height, width), scale, samples, 'avg', aligned)


def _onnx_top(g, values, count):
    wanted = g.op('Constant', value_t=torch.tensor([_constant(count)]))
    length = g.op('Shape', values, start_i=1, end_i=2)
    return g.op('TopK', values, g.op('Min', wanted, length), axis_i=1, outputs=2)


def _onnx_nms(g, boxes, scores, limit, iou):
    limits = g.op('Constant', value_t=torch.tensor([_constant(limit)]))
    ious = g.op('Constant', value_t=torch.tensor([_constant(iou)], dtype=torch.float32))
    least = g.op('Constant', value_t=torch.zeros(1))
    return g.op('NonMaxSuppression', boxes, scores, limits, ious, least)


def _onnx_roi_align(g, feature, boxes, images, height, width, scale, samples, aligned):
    return g.op(
        'RoiAlign',
        feature,
        boxes,
        images,
        coordinate_transformation_mode_s='half_pixel' if _constant(aligned) else 'output_half_pixel',
        mode_s='avg',
        output_height_i=_constant(height),
        output_width_i=_constant(width),
        sampling_ratio_i=max(_constant(samples), 0),
        spatial_scale_f=_constant(scale),
    )


def _constant(value):
    return value.node()['value'] if value.node().kindOf('value') != 't' else value.node().t('value').item()


def register_symbolics(opset: int) -> None:
    """Tell torch's ONNX exporter how the operators are written."""
    for name, symbolic in (('top', _onnx_top), ('nms', _onnx_nms), ('roi_align', _onnx_roi_align)):
        torch.onnx.register_custom_op_symbolic(f'mmkerneldna::{name}', symbolic, opset)

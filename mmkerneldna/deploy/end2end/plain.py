"""Top-k, NMS and RoIAlign in plain torch, for a pt2 package: it runs without mmcv and without operators of its own.

Loops are ``torch.while_loop``: their number of turns depends on the image. Letters as in :mod:`.operators`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class PlainOperators:
    """The same functions as :class:`.operators.OnnxOperators`; a row has all ``count`` places even where it is shorter."""

    @staticmethod
    def top(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The largest values of each row, (G, n) -> (G, count) and their places; zeros at place 0 beyond a short row."""
        best, places = torch.cat([values, values.new_zeros(values.shape[0], count)], 1).topk(count)
        return best, torch.where(places < values.shape[1], places, 0)

    @staticmethod
    def keep(boxes: Tensor, scores: Tensor, iou: float, limit: int) -> Tensor:
        """Greedy NMS: a turn takes the best box left of each group and drops what overlaps it."""
        areas = _areas(boxes)

        def goes_on(turn, left, kept):
            return (turn < limit) & (left > 0).any()

        def take(turn, left, kept):
            best, place = left.max(1, keepdim=True)
            box = boxes.gather(1, place[..., None].expand(-1, -1, 4))
            chosen = torch.zeros_like(left).scatter(1, place, 1.0) * (best > 0)
            drops = _overlap(boxes, areas, box) > iou
            return turn + 1, left * ~drops * (1 - chosen), kept + chosen

        start = torch.zeros((), dtype=torch.int64), scores.clone(), torch.zeros_like(scores)
        return torch.while_loop(goes_on, take, start)[2] > 0

    @staticmethod
    def present(there: Tensor) -> Tensor:
        """All places, (R,): a number of regions that depends on the image is more than an ahead-of-time compiler takes."""
        return torch.arange(there.numel())

    @staticmethod
    def roi_align(features: Sequence[Tensor], levels: Tensor, images: Tensor, boxes: Tensor, layers) -> tuple[Tensor, Tensor]:
        """RoIAlign with as many samples per bin as the region needs: turn t adds the t-th sample of every bin."""
        flat, starts, heights, widths = _one_map(features)
        scales = boxes.new_tensor([layer.spatial_scale for layer in layers])[levels]
        bins, offset = layers[0].output_size, 0.5 if layers[0].aligned else 0.0
        x1, y1, x2, y2 = (side * scales - offset for side in boxes.unbind(1))  # a loop may not see two views of one tensor
        wide, high = x2 - x1, y2 - y1
        if not layers[0].aligned:
            wide, high = wide.clamp(min=1), high.clamp(min=1)
        across, down = _samples(wide, bins[1], layers[0].sampling_ratio), _samples(high, bins[0], layers[0].sampling_ratio)
        base, height, width = images * flat.shape[1] + starts[levels], heights[levels], widths[levels]
        table = flat.flatten(0, 1)

        def goes_on(turn, total):
            return turn < (across * down).max()

        def add(turn, total):
            row, column = torch.div(turn, across.clamp(min=1), rounding_mode='floor'), turn % across.clamp(min=1)
            y = _points(y1, high, bins[0], row, down)
            x = _points(x1, wide, bins[1], column, across)
            value = _bilinear(table, base, height, width, y, x)
            return turn + 1, total + value * (turn < across * down)[:, None, None, None]

        start = torch.zeros((), dtype=torch.int64), table.new_zeros(len(levels), *bins, table.shape[1])
        total = torch.while_loop(goes_on, add, start)[1]
        mean = total / (across * down).clamp(min=1)[:, None, None, None]
        return mean.permute(0, 3, 1, 2), torch.arange(len(levels))


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _overlap(boxes: Tensor, areas: Tensor, box: Tensor) -> Tensor:
    """IoU of (G, n, 4) with (G, 1, 4)."""
    sides = torch.minimum(boxes[..., 2:], box[..., 2:]) - torch.maximum(boxes[..., :2], box[..., :2])
    shared = sides.clamp(min=0).prod(-1)
    return shared / (areas + _areas(box) - shared)


def _one_map(features: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All levels as (N, pixels, C), with the first pixel, the height and the width of each level."""
    flat = torch.cat([feature.flatten(2) for feature in features], 2).transpose(1, 2).contiguous()
    heights = torch.stack([torch.full((), feature.shape[2], dtype=torch.int64) for feature in features])
    widths = torch.stack([torch.full((), feature.shape[3], dtype=torch.int64) for feature in features])
    sizes = heights * widths
    return flat, sizes.cumsum(0) - sizes, heights, widths


def _samples(length: Tensor, bins: int, ratio: int) -> Tensor:
    """How many samples a bin has along one axis, (R,)."""
    return torch.full_like(length, ratio).long() if ratio > 0 else (length / bins).ceil().long()


def _points(start: Tensor, length: Tensor, bins: int, index: Tensor, count: Tensor) -> Tensor:
    """Where sample ``index`` of ``count`` lies in each bin, (R, bins)."""
    share = (index + 0.5) / count.clamp(min=1)
    return start[:, None] + (torch.arange(bins) + share[:, None]) * (length / bins)[:, None]


def _bilinear(table: Tensor, base: Tensor, height: Tensor, width: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Values at (y, x) of each region's map, (R, bins) and (R, bins) -> (R, bins, bins, C); 0 beyond a border of one pixel."""
    y_low, y_high, y_part, y_in = _neighbours(y, height)
    x_low, x_high, x_part, x_in = _neighbours(x, width)

    def at(row, column):
        return table[base[:, None, None] + row[:, :, None] * width[:, None, None] + column[:, None, :]]

    x_part, y_part = x_part[:, None, :, None], y_part[:, :, None, None]
    upper = at(y_low, x_low) * (1 - x_part) + at(y_low, x_high) * x_part
    lower = at(y_high, x_low) * (1 - x_part) + at(y_high, x_high) * x_part
    return (upper * (1 - y_part) + lower * y_part) * (y_in[:, :, None, None] * x_in[:, None, :, None])


def _neighbours(points: Tensor, length: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The pixels before and behind each point, the share of the latter, and whether the point counts; (R, bins) each."""
    last = (length - 1)[:, None]
    inside = (points >= -1) & (points <= length[:, None])
    points = torch.minimum(points.clamp(min=0), last.to(points.dtype))
    low = torch.minimum(points.long(), last)
    return low, torch.minimum(low + 1, last), points - low, inside

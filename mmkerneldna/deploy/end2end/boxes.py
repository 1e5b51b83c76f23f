"""Boxes from what heads predict, in operations every exporter knows, for whole batches.

mmdet's own coders serve single images, write in place, and take other branches while a model is exported.
"""

import math

import torch
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder, DistancePointBBoxCoder
from torch import Tensor

from ..export_error import ExportError


def check_coder(coder, owner: str) -> None:
    """Refuse a coder :func:`decode` does not know.

    Raises:
        ExportError: names it and its owner.
    """
    if type(coder) not in (DeltaXYWHBBoxCoder, DistancePointBBoxCoder) or getattr(coder, 'add_ctr_clamp', False):
        raise ExportError(
            f'{owner}.bbox_coder is a {type(coder).__name__}: only DeltaXYWHBBoxCoder (without add_ctr_clamp) and '
            'DistancePointBBoxCoder can be exported'
        )


def decode(coder, priors: Tensor, predicted: Tensor, size: tuple) -> Tensor:
    """Boxes of priors.

    Args:
        coder: of mmdet, see :func:`check_coder`.
        priors: (..., 4) boxes, or (..., 2) points.
        predicted: (..., 4), deltas or distances.
        size: H, W to clip to; numbers, or what a trace has in their place.

    Returns:
        Tensor: (..., 4), x1, y1, x2, y2.
    """
    if isinstance(coder, DeltaXYWHBBoxCoder):
        corners = _from_deltas(coder, priors, predicted)
    else:
        corners = [*(priors - predicted[..., :2]).unbind(-1), *(priors + predicted[..., 2:]).unbind(-1)]
    if coder.clip_border is not False:
        corners = [_clip(side, size[1 - i % 2]) for i, side in enumerate(corners)]
    return torch.stack(corners, -1)


def _from_deltas(coder, priors: Tensor, deltas: Tensor) -> list[Tensor]:
    """x, y are moved by a share of the prior's size, w, h multiplied by exponents that are bounded."""
    deltas = deltas * deltas.new_tensor(coder.stds) + deltas.new_tensor(coder.means)
    sizes = priors[..., 2:] - priors[..., :2]
    centres = (priors[..., :2] + priors[..., 2:]) * 0.5 + sizes * deltas[..., :2]
    bound = abs(math.log(16 / 1000))
    halves = sizes * deltas[..., 2:].clamp(-bound, bound).exp() * 0.5
    return [*(centres - halves).unbind(-1), *(centres + halves).unbind(-1)]


def _clip(values: Tensor, most) -> Tensor:
    if isinstance(most, Tensor):  # a size while torch.jit traces
        return torch.minimum(values.clamp(min=0), most.to(values.dtype))
    return values.clamp(min=0).clamp(max=most)


def place_of(values: Tensor, places: Tensor) -> Tensor:
    """Rows of each image, (N, n, D) at (N, k) -> (N, k, D)."""
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[2]))

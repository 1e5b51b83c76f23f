"""QueryGate: a coarse level of a feature pyramid says where small objects may be.

QueryDet: Cascaded Sparse Query for Accelerating High-Resolution Small Object Detection, Yang et al., CVPR 2022,
https://arxiv.org/abs/2103.09136

Letters: N batch, C channels, H W the coarse map, h w tiles of the fine map.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmdet.models.losses import FocalLoss
from mmdet.utils import reduce_mean
from mmengine.model import normal_init
from torch import Tensor, nn

from ..errors import UsageError
from ..layers.drop_in import at_least_fp32
from .gates import KeepGate

#: probability that an untrained gate gives to a cell, as the classification of RetinaNet starts
PRIOR = 0.01


class QueryGate(KeepGate):
    """One decision per tile of the fine map: the largest logit of the coarse cells that it covers.

    It learns from labels, not from a keep rate: a cell is positive where it is at most one cell's side from the centre of a
    small box. The threshold is that of a probability, until :func:`.keep.set_keep` moves it.

    Args:
        channels (int): C.
        cells (int): coarse cells per side of a tile.
        stride (int): pixels per side of a coarse cell.
        small (float): pixels; a box with a smaller square root of its area is small.
        threshold (float): probability above which a tile is computed.
        convs (int): hidden 3x3 convolutions.

    Raises:
        UsageError: ``threshold`` outside (0, 1), or ``small`` not positive.
    """

    loss_name, rate_name = '', 'query_rate'  # the head adds the loss: it needs the boxes

    def __init__(self, channels: int, cells: int, stride: int, small: float, threshold: float, convs: int = 1) -> None:
        super().__init__(keep=1.0)
        if not 0 < threshold < 1 or small <= 0:
            raise UsageError(f'query: threshold={threshold} must lie between 0 and 1, and small={small} be positive')
        self.cells, self.stride, self.small = cells, stride, small
        self.convs = nn.Sequential(*(ConvModule(channels, channels, 3, padding=1) for _ in range(convs)))
        self.score = nn.Conv2d(channels, 1, 3, padding=1)
        self.loss = FocalLoss(use_sigmoid=True, gamma=2.0, alpha=0.25)
        self.set_threshold(math.log(threshold / (1 - threshold)))
        self.init_weights()

    def init_weights(self) -> None:
        """As the towers of RetinaNet: small kernels, and a bias that finds no objects."""
        for conv in (m for m in self.modules() if isinstance(m, nn.Conv2d)):
            normal_init(conv, std=0.01)
        normal_init(self.score, std=0.01, bias=-math.log((1 - PRIOR) / PRIOR))

    def cell_logits(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 1, H, W)."""
        return at_least_fp32(self.score(self.convs(x)))

    def logits(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 1, h, w)."""
        return F.max_pool2d(self.cell_logits(x), self.cells, ceil_mode=True)

    def query_loss(self, x: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """Focal loss of the cells over the number of positive ones.

        Args:
            x: (N, C, H, W).
            boxes: (n, 4) of each image, x1 y1 x2 y2 in pixels.
        """
        logits = self.cell_logits(x)
        if not len(logits):
            return logits.sum()
        targets = torch.stack([query_targets(b, logits.shape[2:], self.stride, self.small) for b in boxes])
        self._log_rate(logits)
        positives = reduce_mean(targets.sum().to(logits.dtype)).clamp_min(1)
        # FocalLoss counts classes: 0 is the only one, 1 the background
        return self.loss(logits.flatten()[:, None], (~targets).flatten().long(), avg_factor=positives)

    @torch.no_grad()
    def _log_rate(self, logits: Tensor) -> None:
        kept = F.max_pool2d(logits, self.cells, ceil_mode=True) > self.threshold
        self.rate.lerp_(kept.to(self.rate.dtype).mean(), 0.05)


def query_targets(boxes: Tensor, size: Sequence[int], stride: int, small: float) -> Tensor:
    """Where a coarse level should query: (H, W) of bool.

    Args:
        boxes: (n, 4), x1 y1 x2 y2 in pixels.
        size: H, W.
        stride: pixels per cell.
        small: see :class:`QueryGate`.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    centres = ((boxes[:, :2] + boxes[:, 2:]) / 2)[sides.prod(1).clamp_min(0).sqrt() < small]
    ys, xs = ((torch.arange(side, device=boxes.device) + 0.5) * stride for side in size)
    squares = (centres[:, 0, None] - xs).square()[:, None, :] + (centres[:, 1, None] - ys).square()[:, :, None]
    # the cell with the centre too, were it a corner: the farthest centre of a cell is .71 strides away
    return (squares <= stride**2).any(0)

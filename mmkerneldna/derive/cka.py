"""Linear centred kernel alignment: how alike two sets of features are, whatever their rotation and size.

Similarity of Neural Network Representations Revisited, Kornblith et al., https://arxiv.org/abs/1905.00414

Letters: N batch, C channels, P positions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

TINY = 1e-12


def same_grid(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps (N, C, H, W) at the same positions: the larger one is averaged down."""
    size = (min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3]))
    return F.adaptive_avg_pool2d(a, size), F.adaptive_avg_pool2d(b, size)


class LinearCKA:
    """CKA of two features over all positions of all batches.

    ||Y'X||² / (||X'X|| ||Y'Y||) of the centred (P, C) features, from sums that grow with C² and not with P.
    """

    def __init__(self) -> None:
        self.count = 0
        self.sums: tuple = (0, 0, 0, 0, 0)

    def add(self, a: Tensor, b: Tensor) -> None:
        """Two maps (N, C_a, H, W) and (N, C_b, H', W') of the same images."""
        x, y = (t.double().transpose(0, 1).flatten(1) for t in same_grid(a, b))  # (C, P)
        self.count += x.shape[1]
        terms = (x.sum(1), y.sum(1), x @ x.T, y @ y.T, x @ y.T)
        self.sums = tuple(old + new for old, new in zip(self.sums, terms))

    def value(self) -> float:
        """0 (nothing in common) to 1 (the same up to rotation, size and shift)."""
        sum_x, sum_y, xx, yy, xy = self.sums
        xx, yy, xy = (
            square - torch.outer(left, right) / self.count
            for square, left, right in ((xx, sum_x, sum_x), (yy, sum_y, sum_y), (xy, sum_x, sum_y))
        )
        return min(1.0, float(xy.square().sum() / (xx.norm() * yy.norm()).clamp_min(TINY)))

"""Where a child starts that can't keep its kernel: W_child ~ W_parent * a_o * s_ij (+ B A).

Kernels of different trained blocks are hardly correlated. Plain least squares then shrinks the child to almost nothing, and
the norm behind it, which still divides by the old spread, passes that on: worse than the parent's kernel unchanged. So the
size is kept, per filter and per tap, and only the sign follows the correlation.

Letters: C_out filters, C_in inputs, k taps per side, r rank.
"""

from typing import NamedTuple

import torch
from torch import Tensor

TINY = 1e-12
ROUNDS = 10
REGRESSIONS = 100  # the turns of least squares converge to 1e-14; ten left up to 2e-3


class Scales(NamedTuple):
    """Factors on the parent's kernel: per filter (C_out, 1, 1, 1), per tap (1, 1, k, k)."""

    filters: Tensor
    taps: Tensor

    def apply(self, parent: Tensor) -> Tensor:
        """The fitted kernel, (C_out, C_in, k, k)."""
        return parent * self.filters * self.taps


def identity_scales(kernel: Tensor) -> Scales:
    """Factors of one."""
    return Scales(kernel.new_ones(kernel.shape[0], 1, 1, 1), kernel.new_ones(1, 1, *kernel.shape[2:]))


def same_size(kernel: Tensor, parent: Tensor, taps: bool, signs: Tensor | None = None) -> Scales:
    """Factors that give ``parent`` the norm of each filter and of each tap of ``kernel``.

    Norms per filter and per tap are matched in turns (as in matrix balancing).

    Args:
        kernel (Tensor): what the child had, (C_out, C_in, k, k).
        parent (Tensor): of the same shape.
        taps (bool): whether the child has a factor per tap.
        signs (Tensor, optional): (C_out, ) of -1 and 1. Defaults to the sign of the kernels' correlation.
    """
    goal, own = kernel.square().sum(1), parent.square().sum(1)  # (C_out, k, k)
    filters, spatial = identity_scales(kernel)
    for _ in range(ROUNDS if taps else 1):
        filters = _ratio(goal.sum((1, 2)), (own * spatial[0].square()).sum((1, 2))).view(-1, 1, 1, 1)
        if taps:
            spatial = _ratio(goal.sum(0), (own * filters[:, 0].square()).sum(0)).view_as(spatial)
    filters = _ratio(goal.sum((1, 2)), (own * spatial[0].square()).sum((1, 2))).view(-1, 1, 1, 1)
    if signs is None:
        signs = torch.where((kernel * parent * spatial).sum((1, 2, 3)) < 0, -1.0, 1.0)
    return Scales(filters * signs.view(-1, 1, 1, 1).to(filters), spatial)


def least_squares(kernel: Tensor, parent: Tensor) -> Scales:
    """Factor per filter that leaves the smallest remainder: the start if a residual takes up the remainder."""
    factor = (kernel * parent).sum((1, 2, 3)) / parent.square().sum((1, 2, 3)).clamp_min(TINY)
    return Scales(factor.view(-1, 1, 1, 1), identity_scales(kernel).taps)


def closest(kernel: Tensor, parent: Tensor) -> Scales:
    """Factors per filter and per tap that leave the smallest remainder, by alternating least squares.

    Args:
        kernel, parent (Tensor): (C_out, C_in, k, k).
    """
    product, square = (kernel * parent).sum(1), parent.square().sum(1)  # (C_out, k, k): all that the factors depend on
    filters, taps = identity_scales(kernel)
    for _ in range(REGRESSIONS):
        filters = _regression(product, square, taps[0], (1, 2)).view(-1, 1, 1, 1)
        taps = _regression(product, square, filters[:, 0], (0,)).view_as(taps)
    return Scales(_regression(product, square, taps[0], (1, 2)).view(-1, 1, 1, 1), taps)


def low_rank(remainder: Tensor, rank: int, covariance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """B A of rank r closest to ``remainder`` (C_out, C_in * k * k): in its output if the inputs' covariance is known.

    Args:
        remainder (Tensor): what the scales leave of the kernel.
        rank (int): r.
        covariance (Tensor, optional): second moment of the unfolded input, (C_in * k * k, C_in * k * k).

    Returns:
        tuple[Tensor, Tensor]: B (C_out, r) and A (r, C_in * k * k), of balanced norms.
    """
    matrix = remainder.double()
    if covariance is not None:
        values, vectors = torch.linalg.eigh(covariance.double())
        root = values.clamp_min(float(values.max()) * 1e-6 + TINY).sqrt()
        matrix = (matrix @ vectors) * root
    left, singular, right = torch.linalg.svd(matrix, full_matrices=False)
    spread = singular[:rank].sqrt()
    right = right[:rank]
    if covariance is not None:
        right = (right / root) @ vectors.T
    return (left[:, :rank] * spread).to(remainder.dtype), (spread[:, None] * right).to(remainder.dtype)


def relative_error(kernel: Tensor, fitted: Tensor) -> float:
    """||fitted - kernel|| / ||kernel||."""
    return float((fitted - kernel).norm() / kernel.norm().clamp_min(TINY))


def _regression(product: Tensor, square: Tensor, factor: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Best factors over the other dimensions, given the ones over ``dims``."""
    return (product * factor).sum(dims) / (square * factor.square()).sum(dims).clamp_min(TINY)


def _ratio(goal: Tensor, own: Tensor) -> Tensor:
    return (goal / own.clamp_min(TINY)).sqrt()

"""Does the predicted damage rank the real one? Single children are derived, and what they cost is measured on other images."""

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from ..sharing import Borrowing, SharingPlan, share_kernels
from ..sharing.auto import worth
from .engine import derive
from .redundancy import Pair, Redundancy
from .report import level_rows
from .run import Run
from .source import DeriveError

FEWEST = 3  # trials that a rank correlation can be read off


@dataclass
class Trial:
    """One plan of a single child.

    Attributes:
        pair (Pair): with the prediction.
        measured (float): ||difference|| / ||dense|| on held-out images, after a derivation without steps; see
            :func:`output_error`.
    """

    pair: Pair
    measured: float


def spread_pairs(module: nn.Module, redundancy: Redundancy, count: int) -> list[Pair]:
    """Pairs from the least to the greatest predicted damage at even steps, of those that save parameters.

    Raises:
        DeriveError: there are fewer than three.
    """
    pairs = [pair for pair in redundancy.pairs if worth(module.get_submodule(pair.child), Borrowing(pair.child, pair.parent))]
    pairs.sort(key=lambda pair: pair.damage)
    count = min(count, len(pairs))
    if count < FEWEST:
        raise DeriveError(
            f'{count} plans of a single child are too few to rank: {type(module).__name__} has {len(pairs)} '
            f'pairs that save parameters, and at least {FEWEST} trials are wanted'
        )
    return [pairs[round(i * (len(pairs) - 1) / (count - 1))] for i in range(count)]


def validate(
    module: nn.Module, redundancy: Redundancy, images: Sequence[Tensor], held_out: Sequence[Tensor], count: int
) -> Iterator[Trial]:
    """Derive plans of a single child and measure what each costs, one after the other.

    Args:
        module (nn.Module): the dense net, not changed.
        redundancy (Redundancy): of ``module``.
        images (Sequence[Tensor]): batches that norms and branches are measured on.
        held_out (Sequence[Tensor]): batches that the damage is measured on.
        count (int): of plans.

    Raises:
        DeriveError: too few pairs, or images that can't be used.
    """
    pairs = spread_pairs(module, redundancy, count)
    run = Run(module, [path for pair in pairs for path in (pair.child, pair.parent)])
    for pair in pairs:
        target = share_kernels(deepcopy(module), SharingPlan((Borrowing(pair.child, pair.parent),), 'trial'))
        derive(target, module, images, calibration_batches=len(images))
        yield Trial(pair, output_error(target, module, run, held_out))


@torch.no_grad()
def output_error(target: nn.Module, dense: nn.Module, run: Run, batches: Iterable[Tensor]) -> float:
    """||difference|| / ||dense|| of the last level of features, or the mean over all outputs of heads; in evaluation mode.

    All trials are measured with one run, which reaches each of their paths: what a child in a head costs shows in no feature.
    """
    for net in (target, dense):
        net.eval()  # some upstream nets return None
    outputs = [(run(target, batch), run(dense, batch)) for batch in batches]
    errors = [row.error for row in level_rows(*zip(*outputs))]
    return sum(errors) / len(errors) if run.part == 'all' else errors[-1]


def rank_correlations(trials: Sequence[Trial]) -> dict[str, float]:
    """Spearman's rank correlation of the measured damage with the prediction and with each of its parts that varies."""
    parts: dict[str, list[Any]] = {
        'damage': [t.pair.damage for t in trials],
        'share': [t.pair.share for t in trials],
        'output error': [t.pair.output_error for t in trials],
        'kernel error': [t.pair.kernel_error for t in trials],
        'CKA': [t.pair.cka for t in trials],
    }
    measured = [trial.measured for trial in trials]
    return {
        name: float(spearmanr(values, measured).statistic)
        for name, values in parts.items()
        if None not in values and len(set(values)) > 1
    }

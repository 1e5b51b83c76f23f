"""The sharing plan of least predicted damage that keeps a net within a budget of parameters."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..modules import count_parameters
from ..sharing import Borrowing, SharingPlan, SharingPlanError
from ..sharing.auto import stage_of, worth
from ..sharing.plan import adapter_size
from .redundancy import BATCHES, Redundancy, equal_convs, measure_redundancy

MAX_TRIED = 10  # convs of a group up to which every choice of parents is tried


@dataclass(frozen=True)
class Choice:
    """What some of a group's convs borrow from the others.

    Attributes:
        children (dict): child -> parent.
        damage (float): predicted, summed over the children.
        saved (int): parameters, adapters taken off.
    """

    children: dict[str, str] = field(default_factory=dict)
    damage: float = 0.0
    saved: int = 0


def redundancy_plan(
    module: nn.Module,
    budget: float,
    images: Iterable[Tensor] | None = None,
    *,
    across_stages: bool = True,
    reduction: int = 4,
    residual_rank: int = 0,
    spatial_scale: bool = True,
    batches: int = BATCHES,
    redundancy: Redundancy | None = None,
) -> SharingPlan:
    """Choose parents and children of least predicted damage so that at most ``budget`` of the parameters are left.

    Counted are the unique parameters: each kernel once, gates and all other adapters included, against those of ``module`` as
    it is. The net keeps its depth: deployed, with every kernel written out, it has the old size and speed, but for the gates.

    Args:
        module (nn.Module): with trained weights; not changed.
        budget (float): largest part of the parameters to keep, between 0 and 1.
        images (Iterable[Tensor], optional): batches of preprocessed images (N, 3, H, W), for a better prediction.
        across_stages (bool): let convs of different stages share.
        reduction (int): of the input gates.
        residual_rank (int): of the children's low-rank residuals, 0 for none.
        spatial_scale (bool): let children larger than 1x1 have a spatial scale.
        batches (int): of images that are looked at.
        redundancy (Redundancy, optional): of ``module``, if it was measured before.

    Returns:
        SharingPlan: paths relative to ``module``.

    Raises:
        SharingPlanError: a budget that is no such number or can't be met (says the lowest possible), or a module that shares
            kernels already.
        DeriveError: images that can't be used.
    """
    _check_budget(budget)
    options: dict[str, Any] = dict(reduction=reduction, residual_rank=residual_rank, spatial_scale=spatial_scale)
    groups = _groups(module, across_stages, options)
    total = count_parameters(module)
    _check_possible(module, groups, budget, total)
    damage = (redundancy or measure_redundancy(module, images, batches)).damage()
    ladders = [_ladder(paths, saving, damage) for paths, saving in groups]
    chosen = cheapest(ladders, total - math.floor(budget * total))
    borrowings = [Borrowing(child, parent, **options) for choice in chosen for child, parent in choice.children.items()]
    order = {path: i for i, (path, _) in enumerate(module.named_modules())}
    return SharingPlan(tuple(sorted(borrowings, key=lambda b: order[b.child])), f'redundancy {budget:g}')


def _check_budget(budget: float) -> None:
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 < budget < 1:
        raise SharingPlanError(f'budget={budget!r} must be a number between 0 and 1: the part of the parameters to keep')


def _groups(module: nn.Module, across_stages: bool, options: Mapping) -> list[tuple[list[str], int]]:
    """Convs that may share with each other, and what each of them saves as a child; only where it saves something."""
    groups: dict[tuple, list[str]] = {}
    for number, paths in enumerate(equal_convs(module)):
        for path in paths:
            if worth(module.get_submodule(path), Borrowing(path, '', **options)):
                groups.setdefault((number, '' if across_stages else stage_of(path)), []).append(path)
    found = []
    for paths in groups.values():
        conv = module.get_submodule(paths[0])
        found.append((paths, conv.weight.numel() - adapter_size(conv, **options)))
    return [(paths, saving) for paths, saving in found if len(paths) > 1]


def _check_possible(module: nn.Module, groups: Sequence[tuple[list[str], int]], budget: float, total: int) -> None:
    left = total - sum((len(paths) - 1) * saving for paths, saving in groups)
    if left > budget * total:
        lowest = math.ceil(left / total * 1000) / 1000
        raise SharingPlanError(
            f"budget={budget:g} can't be met: the lowest that {type(module).__name__} allows is {lowest:g} "
            f'({left:,} of {total:,} parameters, gates included, with one kernel for each shape); raise the '
            'budget, or try a larger reduction, a lower residual_rank or across_stages=True'
        )


def _ladder(paths: Sequence[str], saving: int, damage: Mapping[tuple[str, str], float]) -> list[Choice]:
    """The least harmful choice with 0, 1, ... all but one of ``paths`` as children."""
    table = np.array([[damage.get((child, parent), 0.0) for parent in paths] for child in paths])
    ladder, parents = [Choice()], tuple(range(len(paths)))
    for count in range(1, len(paths)):
        if len(paths) <= MAX_TRIED:
            tried: Iterable[tuple[int, ...]] = combinations(range(len(paths)), len(paths) - count)
        else:  # one parent after the other turns into a child
            tried = combinations(parents, len(parents) - 1)
        parents = min(tried, key=lambda some: _cost(table, some))
        children = {paths[i]: paths[min(parents, key=lambda p: table[i, p])] for i in range(len(paths)) if i not in parents}
        ladder.append(Choice(children, _cost(table, parents), count * saving))
    return ladder


def _cost(table: np.ndarray, parents: Sequence[int]) -> float:
    children = [i for i in range(len(table)) if i not in parents]
    return float(table[np.ix_(children, parents)].min(axis=1).sum())


def cheapest(ladders: Sequence[Sequence[Choice]], needed: int) -> list[Choice]:
    """One choice of each ladder that together save ``needed`` parameters, at little damage.

    Step by step the move (of any length, on one ladder) of least damage per parameter; the last move is the one of least damage
    among those that reach the goal, and the cheapest end seen on the way counts.
    """
    chosen = [ladder[0] for ladder in ladders]
    best: list[Choice] | None = None
    while True:
        missing = needed - sum(choice.saved for choice in chosen)
        if missing <= 0:
            return chosen if best is None or _damage(chosen) <= _damage(best) else best
        moves = [(i, step) for i, ladder in enumerate(ladders) for step in ladder if step.saved > chosen[i].saved]
        ends = [[*chosen[:i], step, *chosen[i + 1 :]] for i, step in moves if step.saved - chosen[i].saved >= missing]
        best = min(([best] if best else []) + ends, key=_damage, default=None)
        i, step = min(
            moves, key=lambda move: (move[1].damage - chosen[move[0]].damage) / (move[1].saved - chosen[move[0]].saved)
        )
        chosen[i] = step


def _damage(chosen: Sequence[Choice]) -> float:
    return sum(choice.damage for choice in chosen)

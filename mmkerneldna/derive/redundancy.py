"""How well each conv of a trained net would do with the kernel of another one of its shape."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.match import free_convs
from ..sharing import SharingPlanError
from .align import output_pairs
from .branch_share import branch_of, first_map, shares_by_norms, spread
from .cka import LinearCKA
from .dense import block_of, children_of, dense_twin
from .fit import closest, relative_error
from .run import Images, Run, recorded
from .source import DeriveError

BATCHES = 4
TINY = 1e-12


@dataclass
class Pair:
    """One conv as the child of another.

    Attributes:
        child, parent (str): paths.
        kernel_error (float): squared, of the parent's kernel with the best factors per filter and per tap, over the power of
            the child's own.
        output_error (float, optional): 1 - R² of the child's output by the parent's kernel on the child's input, with the best
            factor and shift per filter, on the images; None without images and where none of them gets.
        cka (float, optional): linear CKA of the outputs of the two blocks that they are in.
        share (float): of the child's branch in the variance of its block's output.
    """

    child: str
    parent: str
    kernel_error: float
    output_error: float | None = None
    cka: float | None = None
    share: float = 1.0

    @property
    def damage(self) -> float:
        """Predicted: the part of the block's output that gets lost."""
        return self.share * (self.kernel_error if self.output_error is None else self.output_error)


@dataclass
class Redundancy:
    """What :func:`measure_redundancy` found.

    Attributes:
        pairs (list): a :class:`Pair` for each two convs of equal kernel shape and groups, in both directions.
        with_images (bool): whether outputs were compared.
    """

    pairs: list[Pair] = field(default_factory=list)
    with_images: bool = False

    def damage(self) -> dict[tuple[str, str], float]:
        """(child, parent) -> predicted damage."""
        return {(pair.child, pair.parent): pair.damage for pair in self.pairs}

    def rows(self) -> list[dict[str, Any]]:
        """Plain data, the least damage first."""
        return [{**asdict(pair), 'damage': pair.damage} for pair in sorted(self.pairs, key=lambda pair: pair.damage)]


def equal_convs(module: nn.Module) -> list[list[str]]:
    """Paths of the plain convs that could share, those of equal kernel shape and groups together, in order of definition.

    Raises:
        SharingPlanError: some share already.
    """
    shared = children_of(module)
    if shared:
        raise SharingPlanError(
            f'{type(module).__name__} shares kernels already ({next(iter(shared))} borrows one): redundancy '
            'is measured on the dense net'
        )
    groups: dict[tuple, list[str]] = {}
    for path, conv in free_convs(module).items():
        groups.setdefault((tuple(conv.weight.shape), conv.groups), []).append(path)
    return [paths for paths in groups.values() if len(paths) > 1]


def measure_redundancy(module: nn.Module, images: Iterable[Tensor] | None = None, batches: int = BATCHES) -> Redundancy:
    """Compare every two plain convs of equal kernel shape and groups.

    Args:
        module (nn.Module): with trained weights, not changed; any module, with ``images`` one that takes them: a backbone, or a
            whole detector or segmenter.
        images (Iterable[Tensor], optional): batches of preprocessed images (N, 3, H, W); may be endless.
        batches (int): of them that are looked at.

    Raises:
        SharingPlanError: it shares kernels already.
        DeriveError: images that can't be used, or a module that does not take any.
    """
    groups = equal_convs(module)
    twin = dense_twin(module)
    paths = [path for group in groups for path in group]
    shares = shares_by_norms(twin, paths)
    pairs = {
        (child, parent): Pair(child, parent, _kernel_error(twin, child, parent), share=shares[child])
        for group in groups
        for child in group
        for parent in group
        if child != parent
    }
    if images is not None and pairs:
        _look_at_outputs(twin, groups, pairs, Images(images).take(batches))
    return Redundancy(list(pairs.values()), images is not None)


@torch.no_grad()
def _kernel_error(twin: nn.Module, child: str, parent: str) -> float:
    kernel, lent = (twin.get_submodule(path).weight.double() for path in (child, parent))
    return relative_error(kernel, closest(kernel, lent).apply(lent)) ** 2


@torch.no_grad()
def _look_at_outputs(
    twin: nn.Module, groups: Sequence[list[str]], pairs: dict[tuple[str, str], Pair], batches: Sequence[Tensor]
) -> None:
    run = Run(twin, [child for child, _ in pairs])
    shares, alike = _block_statistics(twin, list(pairs), run, batches)
    for parents in rounds(groups):
        for child, samples in output_pairs(twin, parents, run, batches).items():
            pair = pairs[child, parents[child]]
            if samples:
                borrowed, own = (torch.cat(side, dim=1) for side in zip(*samples))
                pair.output_error = unexplained(borrowed, own)
            pair.share = shares.get(child, pair.share)
            pair.cka = alike.get(frozenset((block_of(child), block_of(parents[child]))))


def rounds(groups: Sequence[list[str]]) -> Iterator[dict[str, str]]:
    """All pairs of each group, every child once at most in each mapping {child: parent}."""
    for step in range(1, max(map(len, groups))):
        yield {path: group[(i + step) % len(group)] for group in groups if step < len(group) for i, path in enumerate(group)}


def unexplained(borrowed: Tensor, own: Tensor) -> float:
    """1 - R² of ``own`` (C, P) by ``borrowed`` (C, P), with the best factor and shift per channel."""
    borrowed, own = (t.double() - t.double().mean(1, keepdim=True) for t in (borrowed, own))
    explained = (borrowed * own).sum(1).square() / borrowed.square().sum(1).clamp_min(TINY)
    power = own.square().sum()
    return float((power - explained.sum()).clamp_min(0) / power.clamp_min(TINY))


def _block_statistics(
    twin: nn.Module, pairs: Sequence[tuple[str, str]], run: Run, batches: Sequence[Tensor]
) -> tuple[dict[str, float], dict[frozenset, float]]:
    """Share of each child's branch, and CKA of each two blocks, of those that the images reach."""
    children = dict.fromkeys(child for child, _ in pairs)
    branches = {child: branch_of(twin, child) for child in children}
    blocks = {frozenset(map(block_of, pair)) for pair in pairs}
    wanted: set[str] = {block_of(child) for child in children} | {branch for branch in branches.values() if branch}
    powers: dict[str, float] = {}
    alike = {pair: LinearCKA() for pair in blocks}
    for batch in batches:
        maps = _maps(twin, wanted, run, batch)
        for path, output in maps.items():
            powers[path] = powers.get(path, 0.0) + spread(output)
        for pair, cka in alike.items():
            if pair <= maps.keys():
                first, *second = (maps[path] for path in pair)
                cka.add(first, *(second or [first]))
    shares = {
        child: powers[branch] / max(powers[block_of(child)], TINY)
        for child, branch in branches.items()
        if branch in powers and block_of(child) in powers
    }
    return shares, {pair: cka.value() for pair, cka in alike.items() if cka.count}


def _maps(twin: nn.Module, wanted: Iterable[str], run: Run, batch: Tensor) -> dict[str, Tensor]:
    """The first map that each of these modules puts out, of those that are called."""
    with recorded(twin, wanted) as calls:
        try:
            run(twin, batch)
        except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            cause = f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'
            raise DeriveError(
                f"{type(twin).__name__} can't be run on images {tuple(batch.shape)} ({cause}): give a backbone "
                'or a whole model, or no images'
            ) from error
    maps = {path: first_map(made) for path, made in calls.items()}
    return {path: output for path, output in maps.items() if output is not None}

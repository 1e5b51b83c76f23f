"""A sharing plan as data: which convolution borrows whose kernel, in whatever module."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..errors import KernelDNAError
from ..layers import ChildConv2d


class SharingPlanError(KernelDNAError, ValueError):
    """A plan that can't be applied; the message names the path, the shapes and what would be allowed."""


@dataclass(frozen=True)
class Borrowing:
    """One line of a plan.

    Attributes:
        child (str): path of the conv that gives up its kernel, relative to the module the plan is applied to.
        parent (str): path of the conv whose kernel it borrows.
        reduction (int): of the child's input gate.
        residual_rank (int): of the child's low-rank residual, 0 for none (the paper).
        spatial_scale (bool): whether the child has one (the paper: unless it is 1x1).
    """

    child: str
    parent: str
    reduction: int = 4
    residual_rank: int = 0
    spatial_scale: bool = True

    def options(self) -> dict[str, Any]:
        """How the child adapts the kernel: what :class:`mmkerneldna.layers.ChildConv2d` takes and :meth:`__str__` says."""
        return dict(reduction=self.reduction, residual_rank=self.residual_rank, spatial_scale=self.spatial_scale)

    def __str__(self) -> str:
        rank = f', residual rank {self.residual_rank}' if self.residual_rank else ''
        return f'{self.child} (reduction {self.reduction}{rank}{"" if self.spatial_scale else ", no spatial scale"})'


@dataclass(frozen=True)
class SharingPlan:
    """Who borrows from whom.

    Attributes:
        borrowings (tuple[Borrowing]): one per child.
        name (str): for messages and tables.

    Raises:
        SharingPlanError: a child listed twice, its own parent, or itself a parent.

    Examples:
        >>> print(SharingPlan.from_mapping({'layer3.1.conv2': 'layer3.2.conv2', 'layer3.3.conv2': 'layer3.4.conv2'}))
        sharing plan 'custom': 2 children, 2 parents
        layer3.2.conv2
        └── layer3.1.conv2 (reduction 4)
        layer3.4.conv2
        └── layer3.3.conv2 (reduction 4)
    """

    borrowings: tuple[Borrowing, ...]
    name: str = 'custom'

    def __post_init__(self) -> None:
        object.__setattr__(self, 'borrowings', tuple(self.borrowings))
        parents, seen = {b.parent for b in self.borrowings}, set()
        for b in self.borrowings:
            if b.child == b.parent:
                raise SharingPlanError(f"plan '{self.name}': {b.child} can't borrow from itself")
            if b.child in seen:
                raise SharingPlanError(f"plan '{self.name}': {b.child} is listed as a child twice; a child has one parent")
            if b.child in parents:
                raise SharingPlanError(
                    f"plan '{self.name}': {b.child} is a child and a parent; a parent must own its "
                    'kernel, so let its children borrow from its own parent'
                )
            seen.add(b.child)

    @classmethod
    def from_mapping(
        cls, mapping: Mapping[str, str | Mapping[str, Any]], reduction: int = 4, name: str = 'custom'
    ) -> 'SharingPlan':
        """Plan from ``{child path: parent path}``, one reduction for all gates.

        Where a child has options of its own, ``dict(parent=..., reduction=..., ...)`` stands for the parent's path.

        Raises:
            SharingPlanError: a child with something else, or with an option that there is not.
        """
        return cls(tuple(_borrowing(child, parent, reduction, name) for child, parent in mapping.items()), name)

    def to_mapping(self) -> dict[str, Any]:
        """What :meth:`from_mapping` makes the same borrowings of: plain data, for a config."""
        return {
            b.child: {'parent': b.parent, **changed} if (changed := _changed_options(b)) else b.parent for b in self.borrowings
        }

    @property
    def children(self) -> dict[str, str]:
        """{child path: parent path}."""
        return {b.child: b.parent for b in self.borrowings}

    def __len__(self) -> int:
        return len(self.borrowings)

    def __bool__(self) -> bool:
        return bool(self.borrowings)

    def prefixed(self, prefix: str) -> 'SharingPlan':
        """The same plan seen from an owner: ``plan.prefixed('backbone.')`` fits a whole detector."""
        moved = (replace(b, child=prefix + b.child, parent=prefix + b.parent) for b in self.borrowings)
        return replace(self, borrowings=tuple(moved))

    def within(self, stages: Iterable[str]) -> 'SharingPlan':
        """The part of the plan whose children and parents lie below these top-level names."""
        stages = set(stages)
        kept = (b for b in self.borrowings if {b.child.split('.')[0], b.parent.split('.')[0]} <= stages)
        return replace(self, borrowings=tuple(kept))

    def with_reduction(self, reduction: int) -> 'SharingPlan':
        """The same plan with one reduction for all gates."""
        return self._with(reduction=reduction)

    def with_residual_rank(self, residual_rank: int) -> 'SharingPlan':
        """The same plan with one rank for the residuals of all children, 0 for none."""
        return self._with(residual_rank=residual_rank)

    def with_spatial_scale(self, spatial_scale: bool) -> 'SharingPlan':
        """The same plan with a spatial scale for all children (but 1x1 ones) or for none."""
        return self._with(spatial_scale=spatial_scale)

    def _with(self, **options) -> 'SharingPlan':
        return replace(self, borrowings=tuple(replace(b, **options) for b in self.borrowings))

    def __str__(self) -> str:
        lines = [_headline(self)]
        for parent, children in _by_parent(self.borrowings):
            lines.append(parent)
            lines += _branches(map(str, children))
        return '\n'.join(lines)

    def describe(self, module: nn.Module) -> str:
        """The plan as a tree with shapes and savings, for ``module`` before or after the plan is applied.

        Returns:
            str: one tree per parent with its kernel shape, a branch per child with the kernel parameters it saves and
            the adapter parameters it adds, and a total.
        """
        lines, saved, added = [_headline(self)], 0, 0
        for parent, children in _by_parent(self.borrowings):
            kernel = module.get_submodule(parent).weight
            lines.append(f'{parent}  kernel {tuple(kernel.shape)}')
            costs = [adapter_size(module.get_submodule(b.child), **b.options()) for b in children]
            lines += _branches(f'{b}  saves {kernel.numel():,}, adapter {cost:,}' for b, cost in zip(children, costs))
            saved, added = saved + kernel.numel() * len(children), added + sum(costs)
        lines.append(f'{saved:,} kernel parameters saved, {added:,} adapter parameters added, net {saved - added:,}')
        return '\n'.join(lines)


def _borrowing(child: str, parent: Any, reduction: int, plan: str) -> Borrowing:
    options = {'parent': parent} if isinstance(parent, str) else parent
    known = {'parent', *Borrowing('', '').options()}
    if not isinstance(options, Mapping) or 'parent' not in options or set(options) - known:
        raise SharingPlanError(
            f"plan '{plan}': {child} must have the path of its parent, or a dict of parent and any of "
            f'{", ".join(sorted(known - {"parent"}))}, got {parent!r}'
        )
    return Borrowing(child, **{'reduction': reduction, **options})


def _changed_options(b: Borrowing) -> dict[str, Any]:
    default = Borrowing(b.child, b.parent).options()
    return {key: value for key, value in b.options().items() if value != default[key]}


def adapter_size(conv: nn.Module, reduction: int, residual_rank: int = 0, spatial_scale: bool = True) -> int:
    """Parameters that a child in the place of ``conv`` adds: gate (with a BN), static modulations and residual."""
    if isinstance(conv, ChildConv2d):
        return sum(p.numel() for p in conv.adapter_parameters())
    hidden = conv.in_channels // reduction
    taps = conv.kernel_size[0] * conv.kernel_size[1]
    gate = 2 * conv.in_channels * hidden + 2 * hidden + conv.in_channels
    residual = residual_rank * (conv.out_channels + conv.weight[0].numel())
    return gate + conv.out_channels + (taps if spatial_scale and taps > 1 else 0) + residual


def _headline(plan: SharingPlan) -> str:
    parents = len(set(plan.children.values()))
    return f"sharing plan '{plan.name}': {len(plan)} children, {parents} parents"


def _by_parent(borrowings: Iterable[Borrowing]) -> list[tuple[str, list[Borrowing]]]:
    groups: dict[str, list[Borrowing]] = {}
    for b in borrowings:
        groups.setdefault(b.parent, []).append(b)
    return list(groups.items())


def _branches(texts: Iterable[str]) -> list[str]:
    texts = list(texts)
    return [('└── ' if i == len(texts) - 1 else '├── ') + text for i, text in enumerate(texts)]

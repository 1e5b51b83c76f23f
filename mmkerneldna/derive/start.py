"""The start that needs weights only, or a few images to choose better: grown blocks, exact children, fitted children."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones.shared_backbone import SharedKernelBackbone
from ..layers import ChildConv2d
from ..modules import count_parameters
from .align import best_order, correlation, free_hidden, kernel_similarity, output_pairs, relabel
from .dense import block_of, check_family, check_fit, children_of, dense_twin, parents_of
from .fit import identity_scales, least_squares, low_rank, relative_error, same_size
from .growth import approximated, find_stacks, grow, place_identities
from .neutral import neutral_gate, set_scales
from .report import EXACT, FITTED, IDENTITY, ChildRow, RivalRow
from .rivals import check_static, keep_rivals, make_static, rivals_of, start_rivals, unsettled
from .run import Run, recorded
from .source import rename

ROWS = 8192  # of unfolded inputs that a covariance is taken over


class Start:
    """A target, its dense twin with the source's weights, and what became of each child and each dynamic layer.

    Attributes:
        twin (nn.Module): computes what the source does, in the target's modules.
        parents (dict): child -> parent.
        rivals (dict): path -> dynamic layer that the source gives a kernel for.
        identities (set[str]): blocks that were added.
        kept (list[str]): entries of the target that the source does not give.
        left_out (list[str]): parts of the source that the target has no place for.
        rows (list): a :class:`ChildRow` per child, after :meth:`fit`.
        rival_rows (list): a :class:`RivalRow` per dynamic layer, after :meth:`fit`.

    Args:
        target (nn.Module): with children, dynamic layers, or more blocks than the source.
        state (Mapping): dense source.
        partial (bool): accept a source that lacks entries.

    Raises:
        DeriveError: the source does not fit.
    """

    def __init__(self, target: nn.Module, state: Mapping[str, Tensor], partial: bool = False) -> None:
        self.target, self.parents = target, parents_of(target)
        self.twin, rivals = dense_twin(target), rivals_of(target)
        make_static(self.twin)
        ours = self.twin.state_dict()
        state = rename(state, ours)
        check_static(rivals, state)
        if not partial:
            check_family(self.twin, state)
        stacks = find_stacks(self.twin, state)
        self.identities = place_identities(stacks, self.twin, state, self.parents)
        grown = grow(stacks, self.identities, self.twin, state, self.parents)
        self.kept = check_fit(self.twin, grown, partial)
        self.left_out = sorted({key.rpartition('.')[0] for key in grown if key not in ours})
        fitting = {key: value for key, value in grown.items() if key in ours and key not in self.kept}
        self.twin.load_state_dict(fitting, strict=False)
        self.rivals = keep_rivals(self.twin, rivals, self.kept)
        self.fitted = [c for c in approximated(self.parents, self.identities) if not self._equal(c)]
        self.rows: list[ChildRow] = []
        self.rival_rows: list[RivalRow] = []

    def _equal(self, child: str) -> bool:
        return torch.equal(self._kernel(child), self._kernel(self.parents[child]))

    def _kernel(self, path: str) -> Tensor:
        return self.twin.get_submodule(path).weight

    def dense_size(self) -> int:
        """Parameters of the twin without the blocks that were added."""
        return count_parameters(self.twin) - sum(count_parameters(self.twin.get_submodule(b)) for b in self.identities)

    def changed_blocks(self) -> list[str]:
        """Blocks with a fitted child, a parent of one, or a dynamic layer that must be trained, in the order of definition."""
        paths = {*self.fitted, *(self.parents[c] for c in self.fitted), *unsettled(self.rival_rows, self.rivals)}
        return list(dict.fromkeys(block_of(name) for name, _ in self.twin.named_modules() if name in paths))

    @torch.no_grad()
    def fit(self, compromise: bool, align: bool, run: Run | None, batches: Sequence[Tensor]) -> None:
        """Choose the fitted children's starts and write everything into the target; dynamic layers end in evaluation mode."""
        aligned = self._align(run, batches) if align else set()
        kernels = {child: self._kernel(child).clone() for child in self.parents}
        lent = self._family_means() if compromise else {}
        signs = self._signs(run, batches) if run and batches and not lent else {}
        self._copy_to_target(lent)
        self.rival_rows = start_rivals(self.rivals, self.twin)
        for child, parent in self.parents.items():
            module, kernel = children_of(self.target)[child], kernels[child]
            exact = child not in self.fitted
            self._set(
                module,
                kernel,
                lent.get(parent, self._kernel(parent)),
                exact,
                signs.get(child),
                self._covariance(child, run, batches) if run and batches and not exact else None,
            )
            kind = IDENTITY if block_of(child) in self.identities else EXACT if exact else FITTED
            self.rows.append(
                ChildRow(child, parent, kind, relative_error(kernel, effective_kernel(module)), aligned=child in aligned)
            )

    def _copy_to_target(self, lent: Mapping[str, Tensor]) -> None:
        """Everything but the children's kernels and adapters and the dynamic layers, which the twin does not have."""
        theirs = self.twin.state_dict()
        skipped = {f'{child}.weight' for child in self.parents}
        skipped |= {f'{path}.{name}' for path in self.rivals for name in ('weight', 'bias')}
        for key, value in self.target.state_dict().items():
            if key in theirs and key not in skipped:
                value.copy_(theirs[key])
        for parent, kernel in lent.items():
            self.target.get_submodule(parent).weight.copy_(kernel)

    @staticmethod
    def _set(
        child: ChildConv2d, kernel: Tensor, parent: Tensor, exact: bool, signs: Tensor | None, covariance: Tensor | None
    ) -> None:
        inverse = neutral_gate(child)
        residual = child.residual_b
        if residual is not None:
            residual.zero_()
        if exact:
            return set_scales(child, *identity_scales(kernel), inverse)
        scales = same_size(kernel, parent, child.spatial_scale is not None, signs)
        if residual is None or child.residual_a is None:
            return set_scales(child, *scales, inverse)
        scales = least_squares(kernel, parent)
        left, right = low_rank((kernel - scales.apply(parent)).flatten(1), residual.shape[1], covariance)
        set_scales(child, *scales, inverse)
        residual.copy_(left * inverse)
        child.residual_a.copy_(right)

    def _family_means(self) -> dict[str, Tensor]:
        """Parent of a fitted child -> the mean kernel of the two or more that compute with it, at the parent's size."""
        means = {}
        for parent in dict.fromkeys(self.parents[c] for c in self.fitted):
            own = self._kernel(parent)
            family = [c for c, p in self.parents.items() if p == parent and block_of(c) not in self.identities]
            members = [same_size(own, self._kernel(c), taps=False).apply(self._kernel(c)) for c in family]
            mean = torch.stack([*members, own] if block_of(parent) not in self.identities else members).mean(0)
            means[parent] = same_size(own, mean, taps=False, signs=own.new_ones(len(own))).apply(mean)
            self.fitted += [c for c in family if c not in self.fitted]
        return means

    def _signs(self, run: Run, batches: Sequence[Tensor]) -> dict[str, Tensor]:
        """For each fitted child whether the outputs of its own and the parent's kernel rise together, per filter."""
        signs = {}
        for child, pairs in output_pairs(self.twin, self._fitted_pairs(), run, batches).items():
            if pairs:
                joined = [torch.cat(side, dim=1) for side in zip(*pairs)]
                signs[child] = torch.where(correlation(joined).diagonal() < 0, -1.0, 1.0)
        return signs

    def _fitted_pairs(self) -> dict[str, str]:
        return {child: self.parents[child] for child in self.fitted}

    def _align(self, run: Run | None, batches: Sequence[Tensor]) -> set:
        """Relabel hidden channels where it raises the correlation, on pixels that it was not chosen by; by kernels without
        images."""
        free = {child: hidden for child in self.fitted if (hidden := free_hidden(self.twin, child, self.parents))}
        pairs = output_pairs(self.twin, {c: self.parents[c] for c in free}, run, batches) if run and batches and free else {}
        done = set()
        for child, hidden in free.items():
            if pairs.get(child):
                joined = [torch.cat(side, dim=1) for side in zip(*pairs[child])]
                order = best_order(correlation([t[:, ::2] for t in joined]))
                held = correlation([t[:, 1::2] for t in joined])
                if held[torch.arange(len(order)), order].square().mean() <= held.diagonal().square().mean():
                    continue
            else:
                order = best_order(kernel_similarity(self._kernel(self.parents[child]), self._kernel(child)))
            relabel(self.twin, child, hidden, order)
            done.add(child)
        return done

    def _covariance(self, child: str, run: Run, batches: Sequence[Tensor]) -> Tensor | None:
        """Second moment of the child's unfolded input, if it has a residual and no groups."""
        conv = self.twin.get_submodule(child)
        if getattr(children_of(self.target)[child], 'residual_b', None) is None or conv.groups != 1:
            return None
        total: Any = 0
        rows = 0
        for batch in batches:
            with recorded(self.twin, [child]) as calls:
                run(self.twin, batch)
            for (x,), _ in calls[child]:
                columns = F.unfold(x, conv.kernel_size, conv.dilation, conv.padding, conv.stride).transpose(0, 1).flatten(1)
                columns = columns[:, :: max(1, columns.shape[1] * len(batches) // ROWS)]
                total, rows = total + columns @ columns.T, rows + columns.shape[1]
        return total / rows if rows else None


def effective_kernel(child: ChildConv2d) -> Tensor:
    """What a child with a neutral gate computes with."""
    assert child.gate.fc2.bias is not None  # every gate has it
    gate = child.gate.fc2.bias.double().sigmoid().view(1, -1, 1, 1)
    kernel = child.to_plain().weight.double()
    if child.groups > 1:
        gate = gate.view(child.groups, 1, -1).mean(dim=(0, 1)).view(1, -1, 1, 1)
    return (kernel * gate).to(child.weight.dtype)


def takes_dense(module: nn.Module) -> bool:
    """Whether dense weights have to be derived for ``module``: it has children, or a backbone of ours with its own depths."""
    return bool(children_of(module)) or any(isinstance(m, SharedKernelBackbone) for m in module.modules())

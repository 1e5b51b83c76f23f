"""Put a shallower net's blocks into a deeper one: the extra blocks are identities, so nothing changes.

A residual block whose last norm has gamma = beta = 0 adds nothing to its input. Where such blocks go decides how many children
have to be approximated: a child inside one loses nothing, and a parent inside one may hold the kernel of its child.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import torch
from torch import Tensor, nn

from .dense import block_of
from .source import DeriveError

MAX_PLACEMENTS = 50_000


@dataclass(frozen=True)
class Stack:
    """A stage whose target has more blocks than its source.

    Attributes:
        path (str): of the container.
        source (int): blocks in the source.
        target (int): blocks in the target.
    """

    path: str
    source: int
    target: int


def last_norm(block: nn.Module) -> str | None:
    """Name of the norm that ends the residual branch of ``block``; None if it is not such a block."""
    for name in ('norm3_name', 'norm2_name'):
        if hasattr(block, name) and hasattr(block, getattr(block, name)):
            return getattr(block, name)
    linear = getattr(block, 'linear_conv', None)
    if linear is not None and getattr(block, 'with_res_shortcut', False):
        return f'linear_conv.{linear.norm_name}'
    return None


def can_be_identity(block: nn.Module) -> bool:
    """Whether zeroing the last norm of ``block`` makes it the identity."""
    return last_norm(block) is not None and getattr(block, 'downsample', None) is None


def find_stacks(twin: nn.Module, state: Mapping[str, Tensor]) -> list[Stack]:
    """Stages in which ``twin`` is deeper than the source.

    Raises:
        DeriveError: a stage that is deeper in the source, or one that is no stack of residual blocks.
    """
    found, names = [], list(twin.state_dict())
    for path, module in twin.named_modules():
        if not isinstance(module, (nn.Sequential, nn.ModuleList)):
            continue
        theirs, ours = _numbers(path, state), _numbers(path, names)
        if not theirs or theirs == ours:
            continue
        if theirs > ours:
            raise DeriveError(
                f'{path} has {theirs} blocks in the source and {ours} in the target; blocks can be added, not '
                'left out: take a target at least as deep'
            )
        if sum(map(can_be_identity, module)) < ours - theirs:
            raise DeriveError(
                f'{path} has {theirs} blocks in the source and {ours} in the target, and its blocks are not '
                'residual ones that could be identities: take a source of the same depth'
            )
        found.append(Stack(path, theirs, ours))
    return found


def _numbers(path: str, state: Iterable[str]) -> int:
    pattern = re.compile(re.escape(path) + r'\.(\d+)\.')
    found = {int(m.group(1)) for m in map(pattern.match, state) if m}
    return max(found) + 1 if found else 0


def place_identities(
    stacks: Sequence[Stack], twin: nn.Module, state: Mapping[str, Tensor], parents: Mapping[str, str]
) -> set[str]:
    """Choose which blocks of the target become identities.

    Stage by stage: fewest approximated children first, then least weight of the blocks they are in (mean gamma² of the last
    norm). Few placements are tried one by one; among more than ``MAX_PLACEMENTS`` one identity is placed after the other.

    Returns:
        set[str]: paths of the identity blocks.
    """
    chosen: set[str] = set()
    for stack in stacks:
        free = [i for i, block in enumerate(twin.get_submodule(stack.path)) if can_be_identity(block)]
        extra = stack.target - stack.source

        def cost(positions: tuple[int, ...], stack: Stack = stack, chosen: set[str] = chosen) -> tuple:
            return (*_harm(stack, positions, chosen, twin, state, parents), positions)

        if comb(len(free), extra) <= MAX_PLACEMENTS:
            best = min(combinations(free, extra), key=cost)
        else:
            best = _greedy(free, extra, cost)
        chosen |= {f'{stack.path}.{i}' for i in best}
    return chosen


def _greedy(free: Sequence[int], extra: int, cost) -> tuple[int, ...]:
    placed: tuple[int, ...] = ()
    for _ in range(extra):
        placed = min((tuple(sorted((*placed, i))) for i in free if i not in placed), key=cost)
    return placed


def _harm(
    stack: Stack,
    positions: Sequence[int],
    chosen: set[str],
    twin: nn.Module,
    state: Mapping[str, Tensor],
    parents: Mapping[str, str],
) -> tuple[int, float]:
    identities = chosen | {f'{stack.path}.{i}' for i in positions}
    inside = [child for child in approximated(parents, identities) if block_of(child).startswith(stack.path + '.')]
    sources = source_blocks(stack, identities)
    weights = []
    for child in inside:
        position = int(block_of(child)[len(stack.path) + 1 :].split('.')[0])
        norm = last_norm(twin.get_submodule(f'{stack.path}.{position}'))
        gamma = state.get(f'{stack.path}.{sources.get(position)}.{norm}.weight')
        weights.append(1.0 if gamma is None else float(gamma.square().mean()))
    return len(inside), sum(weights)


def source_blocks(stack: Stack, identities: set[str]) -> dict[int, int]:
    """Number of a block in the target -> its number in the source, without the identities."""
    real = [i for i in range(stack.target) if f'{stack.path}.{i}' not in identities]
    return {i: number for number, i in enumerate(real)}


def free_parents(parents: Mapping[str, str], identities: set[str]) -> dict[str, str]:
    """Parent in an identity block -> the child whose kernel it takes: the first one that computes something."""
    taken: dict[str, str] = {}
    for child, parent in parents.items():
        if block_of(parent) in identities and block_of(child) not in identities:
            taken.setdefault(parent, child)
    return taken


def approximated(parents: Mapping[str, str], identities: set[str]) -> list[str]:
    """Children that can't keep their kernel."""
    served = set(free_parents(parents, identities).values())
    return [child for child in parents if block_of(child) not in identities and child not in served]


def grow(
    stacks: Sequence[Stack], identities: set[str], twin: nn.Module, state: Mapping[str, Tensor], parents: Mapping[str, str]
) -> dict[str, Tensor]:
    """The source's entries in the target's positions, identity blocks filled in.

    An identity block is a copy of the nearest block of its shape; its last norm's affine is zero, its parents hold a child's
    kernel and its children their parent's.
    """
    grown = {key: value for key, value in state.items() if not any(key.startswith(s.path + '.') for s in stacks)}
    ours = twin.state_dict()
    for stack in stacks:
        sources = source_blocks(stack, identities)
        for position, number in sources.items():
            grown.update(_entries(state, f'{stack.path}.{number}.', f'{stack.path}.{position}.'))
        for position in sorted(set(range(stack.target)) - set(sources)):
            grown.update(_identity(stack.path, position, sources, twin, state, ours))
    takers = {**free_parents(parents, identities), **{c: p for c, p in parents.items() if block_of(c) in identities}}
    for taker, giver in takers.items():
        if f'{giver}.weight' in grown:
            grown[f'{taker}.weight'] = grown[f'{giver}.weight'].clone()
    return grown


def _entries(state: Mapping[str, Tensor], prefix: str, new: str) -> dict[str, Tensor]:
    return {new + key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def _identity(
    path: str,
    position: int,
    sources: Mapping[int, int],
    twin: nn.Module,
    state: Mapping[str, Tensor],
    ours: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    prefix = f'{path}.{position}.'
    wanted = {key: value for key, value in ours.items() if key.startswith(prefix)}
    copies = [_entries(state, f'{path}.{sources[i]}.', prefix) for i in sorted(sources, key=lambda i: (abs(i - position), i))]
    copy = max(copies, key=lambda entries: sum(_same_shape(entries, key, value) for key, value in wanted.items()))
    filled = {key: (copy[key] if _same_shape(copy, key, value) else value).clone() for key, value in wanted.items()}
    norm = last_norm(twin.get_submodule(prefix[:-1]))
    for entry in ('weight', 'bias'):
        filled[f'{prefix}{norm}.{entry}'] = torch.zeros_like(filled[f'{prefix}{norm}.{entry}'])
    return filled


def _same_shape(entries: Mapping[str, Tensor], key: str, value: Tensor) -> bool:
    return key in entries and entries[key].shape == value.shape

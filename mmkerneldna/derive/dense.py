"""The dense twin of a net with shared kernels: the same modules, each conv with a kernel of its own.

Holding the source's weights it is the reference for everything: what a child had, what a block put out.
"""

import re
from collections.abc import Iterable, Mapping
from copy import deepcopy

from torch import Tensor, nn

from ..layers import ChildConv2d
from ..modules import replace
from .source import DeriveError, listed

_BLOCK = re.compile(r'(.*\.\d+)\.')


def children_of(target: nn.Module) -> dict[str, ChildConv2d]:
    """path -> child conv, each once."""
    return {path: module for path, module in target.named_modules() if isinstance(module, ChildConv2d)}


def parents_of(target: nn.Module) -> dict[str, str]:
    """path of a child -> path of its parent.

    Raises:
        DeriveError: a parent that lies outside ``target``, or a kernel that is not the parent's any more.
    """
    names = {id(module): path for path, module in target.named_modules()}
    parents = {}
    for path, child in children_of(target).items():
        if not child.tied or id(child.parent) not in names:
            raise DeriveError(
                f'{path} does not share its kernel with a conv of {type(target).__name__} any more: derive '
                'before fusing or deploying, and give the module that holds child and parent'
            )
        parents[path] = names[id(child.parent)]
    return parents


def dense_twin(target: nn.Module) -> nn.Module:
    """A copy of ``target`` in evaluation mode whose children are plain convs."""
    twin = deepcopy(target)
    for child in children_of(twin).values():
        replace(twin, child, child.to_plain())
    twin.eval()  # some upstream nets return None
    return twin.requires_grad_(False)


def block_of(path: str) -> str:
    """Path of the block that holds a conv: up to the last number with something behind it, else the owner."""
    found = _BLOCK.match(path)
    return found.group(1) if found else path.rpartition('.')[0]


def stage_of(path: str) -> str:
    """Path of the stage that holds a block: without its number."""
    return path.rpartition('.')[0]


def check_family(twin: nn.Module, state: Iterable[str]) -> None:
    """Refuse a source that names its parts otherwise, before any talk of depths and shapes.

    Raises:
        DeriveError: it has fewer than half of the target's kinds of entries; blocks of a stage are of one kind.
    """
    ours, theirs = ({re.sub(r'\.\d+\.', '.', key) for key in keys} for keys in (twin.state_dict(), state))
    if 2 * len(ours & theirs) < len(ours):
        raise DeriveError(
            f'the source is of another family: of the {len(ours)} kinds of entries of {type(twin).__name__} it '
            f'has {len(ours & theirs)}; it has {listed(sorted(theirs - ours))}, and '
            f'{listed(sorted(ours - theirs))} is wanted'
        )


def check_fit(twin: nn.Module, state: Mapping[str, Tensor], partial: bool) -> list[str]:
    """Compare grown weights with the twin.

    Args:
        twin (nn.Module): from :func:`dense_twin`.
        state (Mapping): entries in the twin's names.
        partial (bool): accept missing and differently shaped entries, up to half of all.

    Returns:
        list[str]: entries of the twin that ``state`` does not give.

    Raises:
        DeriveError: names entries that are missing, that have another shape, or that a block has no place for.
    """
    ours = twin.state_dict()
    absent = [key for key in ours if key not in state and not key.endswith('num_batches_tracked')]
    shapes = [key for key in ours if key in state and state[key].shape != ours[key].shape]
    blocks = {block_of(key) for key in ours if _BLOCK.match(key)}
    foreign = [key for key in state if key not in ours and block_of(key) in blocks]
    if 2 * len(absent + shapes) > len(ours) or (not partial and (absent or shapes or foreign)):
        raise DeriveError(_misfit(type(twin).__name__, ours, state, absent, shapes, foreign))
    return absent + shapes


def _misfit(name, ours, state, absent, shapes, foreign) -> str:
    parts = []
    if shapes:
        some = [f'{key} {tuple(state[key].shape)} instead of {tuple(ours[key].shape)}' for key in shapes]
        parts.append(f'{len(shapes)} of another shape ({listed(some)})')
    if absent:
        parts.append(f'{len(absent)} missing ({listed(absent)})')
    if foreign:
        parts.append(f'{len(foreign)} that its blocks have no place for ({listed(foreign)})')
    return (
        f'the source does not fit {name}, of whose {len(ours)} dense entries it has {"; ".join(parts)}: take a source of '
        'the same family and width with all its entries, at most as deep as the target'
    )

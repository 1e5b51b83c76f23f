"""The automatic policy: a sharing plan for any module."""

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import product

from torch import nn

from ..layers.match import describe_convs, free_convs
from ..modules import is_plain_conv
from .plan import Borrowing, SharingPlan, SharingPlanError, adapter_size
from .policies import register_policy

Taken = Callable[[nn.Conv2d], bool]


@register_policy('auto')
def auto_plan(
    module: nn.Module,
    pattern: str = 'FS',
    stages: Sequence[str] | None = None,
    kernel_sizes: Sequence[int] | None = None,
    min_kernel_params: int = 8192,
    reduction: int = 4,
    across_stages: bool | None = None,
    residual_rank: int = 0,
    spatial_scale: bool = True,
) -> SharingPlan:
    """Make a plan for any module.

    Convs of one stage with the same kernel shape and groups form a group, in order of definition. ``pattern`` is laid
    over each group: ``F`` keeps a full kernel of its own, ``S`` shares: it borrows from the next ``F``, or from the last
    one where none follows. A kernel whose adapter would cost as much as it saves is left alone.

    Args:
        module (nn.Module): backbone, neck, head or whole model.
        pattern (str): letters F and S, repeated as needed; one letter may carry a ``*`` to fill the group: ``'S*F'`` all
            borrow from the last conv, ``'FS*F'`` all but the first (the paper's MobileNetV2).
        stages (Sequence[str], optional): path prefixes to look into, e.g. ``('layer3', 'layer4')``. Defaults to all.
        kernel_sizes (Sequence[int], optional): square kernels to share. Defaults to every kernel of more than one tap, or
            to the 1x1 kernels where none of those can share (nets of depthwise and 1x1 convs, as MobileNetV2).
        min_kernel_params (int): smallest kernel worth sharing, in parameters.
        reduction (int): of the input gates.
        across_stages (bool, optional): let convs of different stages share. Defaults to no, unless no stage has two
            that can (UNet, Darknet).
        residual_rank (int): of the children's low-rank residuals, 0 for none.
        spatial_scale (bool): let children larger than 1x1 have a spatial scale.

    Returns:
        SharingPlan: named ``auto``.

    Raises:
        SharingPlanError: a malformed pattern, a stage that no path begins with, or nothing to share.
    """
    _check_pattern(pattern)
    _check_stages(module, stages)
    sizes = [_spatial, _pointwise] if kernel_sizes is None else [lambda conv: _square(conv) in kernel_sizes]
    for across, taken in product([False, True] if across_stages is None else [across_stages], sizes):
        groups = _groups(module, stages, taken, min_kernel_params, across)
        pairs = [pair for paths in groups.values() for pair in _borrow_within(paths, _expand(pattern, len(paths)))]
        candidates = (Borrowing(c, p, reduction, residual_rank, spatial_scale) for c, p in pairs)
        borrowings = tuple(b for b in candidates if worth(module.get_submodule(b.child), b))
        if borrowings:
            return SharingPlan(borrowings, 'auto')
    raise SharingPlanError(
        f'the automatic policy finds nothing to share in {type(module).__name__} (pattern={pattern!r}, '
        f'stages={stages}, kernel_sizes={kernel_sizes}, min_kernel_params={min_kernel_params}; convs: '
        f'{describe_convs(module)}): it needs two plain convs with the same kernel shape and groups, large enough to pay '
        'for a gate; try other kernel_sizes, a lower min_kernel_params, a larger reduction, a lower residual_rank or '
        'across_stages=True'
    )


def stage_of(path: str) -> str:
    """Path up to its first index: ``'backbone.layer3.0.conv2'`` -> ``'backbone.layer3'``."""
    return re.split(r'\.\d+(?:\.|$)', path)[0]


def _check_pattern(pattern: str) -> None:
    if not re.fullmatch(r'(?:[FS]\*?)+', pattern) or pattern.count('*') > 1 or not re.search('F(?!\\*)', pattern):
        raise SharingPlanError(
            f'pattern={pattern!r} must be letters F (full) and S (shared) with at least one plain F and '
            "at most one letter starred, such as 'FS', 'S*F' or 'FS*F'"
        )


def _check_stages(module: nn.Module, stages: str | Sequence[str] | None) -> None:
    if isinstance(stages, str):
        raise SharingPlanError(f'stages={stages!r} must be a sequence of path prefixes, such as ({stages!r},)')
    paths = [name for name, _ in module.named_modules()]
    for stage in stages or ():
        if stage not in paths:
            known = sorted({stage_of(name) for name, m in module.named_modules() if is_plain_conv(m)})
            raise SharingPlanError(f'stage {stage!r} is not in {type(module).__name__}; stages with convs: {", ".join(known)}')


def _groups(
    module: nn.Module, stages: Sequence[str] | None, taken: Taken, min_kernel_params: int, across_stages: bool
) -> dict[tuple, list[str]]:
    groups: dict[tuple, list[str]] = {}
    for path, conv in free_convs(module).items():
        if conv.weight.numel() >= min_kernel_params and _inside(path, stages) and taken(conv):
            stage = '' if across_stages else stage_of(path)
            groups.setdefault((stage, tuple(conv.weight.shape), conv.groups), []).append(path)
    return groups


def _spatial(conv: nn.Conv2d) -> bool:
    return max(conv.kernel_size) > 1


def _pointwise(conv: nn.Conv2d) -> bool:
    return not _spatial(conv)


def _square(conv: nn.Conv2d) -> int | None:
    return conv.kernel_size[0] if conv.kernel_size[0] == conv.kernel_size[1] else None


def _inside(path: str, stages: Iterable[str] | None) -> bool:
    return stages is None or any(path == stage or path.startswith(stage + '.') for stage in stages)


def _expand(pattern: str, length: int) -> str:
    """Lay the pattern over ``length`` convs: the starred letter fills, without a star the whole repeats."""
    star = pattern.find('*')
    if star < 0:
        return (pattern * length)[:length]
    head, tail = pattern[: star - 1], pattern[star + 1 :]
    return (head + pattern[star - 1] * max(0, length - len(head) - len(tail)) + tail)[:length]


def _borrow_within(paths: list[str], letters: str) -> list[tuple[str, str]]:
    full = [i for i, letter in enumerate(letters) if letter == 'F']
    if not full:
        return []
    return [(paths[i], paths[next((f for f in full if f > i), full[-1])]) for i, letter in enumerate(letters) if letter == 'S']


def worth(conv: nn.Module, b: Borrowing) -> bool:
    """Whether the kernel that a child in the place of ``conv`` gives up is larger than its adapter."""
    return b.reduction <= conv.in_channels and adapter_size(conv, **b.options()) < conv.weight.numel()

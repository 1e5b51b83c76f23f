"""Named sharing plans as tables: the paper's, and ours in the same spirit for nets the paper leaves out.

KernelDNA: Dynamic Kernel Sharing via Decoupled Naive Adapters, Huang et al., https://arxiv.org/abs/2503.23379; the
topologies of ResNet-18, ResNet-50 and MobileNetV2 are facts of the released code (haiduo/KernelDNA).

Each row is (stage, child block, child conv, parent block, parent conv, reduction); stages count from 1, blocks from 0.
"""

import difflib
from typing import Any

from .plan import Borrowing, SharingPlan, SharingPlanError

Row = tuple[int, int, str, int, str, int]


def _basic_stage(stage: int, blocks: int) -> list[Row]:
    """FS-SF-SF-...: the second conv of block 0 and the first of every later block borrow the next block's conv2."""
    rows = [(stage, 0, 'conv2', 1, 'conv2', 4)]
    return rows + [(stage, b, 'conv1', b, 'conv2', 4) for b in range(1, blocks)]


def _paired_stage(stage: int, blocks: int, convs: tuple[str, ...] = ('conv2',), reduction: int = 4) -> list[Row]:
    """F-n(SF): behind block 0, every odd block borrows from the even one after it."""
    return [(stage, b, conv, b + 1, conv, reduction) for b in range(1, blocks - 1, 2) for conv in convs]


def _inverted_stage(stage: int, blocks: int) -> list[Row]:
    """F-nS-F: all blocks but the first and the last borrow the last one's two 1x1 convs."""
    last = blocks - 1
    return [
        (stage, b, conv, last, conv, reduction)
        for b in range(1, last)
        for conv, reduction in (('expand_conv.conv', 4), ('linear_conv.conv', 24))
    ]


# A ResNeXt keeps its parameters in the 1x1 convs, its grouped 3x3 is cheap; with the paper's reduction of 4 a gate on
# the 1024 channels in front of such a conv would cost as much as the kernel saves, hence MobileNetV2's 24.
_RESNEXT: dict[str, Any] = dict(convs=('conv1', 'conv3'), reduction=24)

TABLES: dict[str, list[Row]] = {
    # The paper's.
    'resnet18': _basic_stage(3, 3) + _basic_stage(4, 3),
    'resnet50': _paired_stage(3, 7) + _paired_stage(4, 3),
    'mobilenet_v2': _inverted_stage(3, 3) + _inverted_stage(4, 4) + _inverted_stage(5, 3) + _inverted_stage(6, 3),
    # Ours: ResNet-34 one block deeper in stages 3 and 4, as the paper does to ResNet-18; ResNet-101 has the odd number
    # of blocks that the pairs need already.
    'resnet34': _basic_stage(3, 7) + _basic_stage(4, 4),
    'resnet101': _paired_stage(3, 23) + _paired_stage(4, 3),
    'resnext50': _paired_stage(3, 6, **_RESNEXT) + _paired_stage(4, 3, **_RESNEXT),
    'resnext101': _paired_stage(3, 23, **_RESNEXT) + _paired_stage(4, 3, **_RESNEXT),
}


def _plan(name: str) -> SharingPlan:
    rows = (Borrowing(f'layer{s}.{cb}.{cc}', f'layer{s}.{pb}.{pc}', r) for s, cb, cc, pb, pc, r in TABLES[name])
    return SharingPlan(tuple(rows), name)


PLANS: dict[str, SharingPlan] = {name: _plan(name) for name in TABLES}


def get_plan(name: str) -> SharingPlan:
    """Plan by name.

    Raises:
        SharingPlanError: no such plan; the message lists the nearest names.
    """
    if name not in PLANS:
        near = difflib.get_close_matches(name, PLANS, n=3, cutoff=0.4)
        hint = f'did you mean {" or ".join(map(repr, near))}? ' if near else ''
        raise SharingPlanError(
            f'no sharing plan is named {name!r}; {hint}known plans: {", ".join(PLANS)}, or '
            "dict(type='auto', ...), or a {child path: parent path} mapping"
        )
    return PLANS[name]

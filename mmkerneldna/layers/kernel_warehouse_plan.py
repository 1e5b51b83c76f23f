"""Which convolutions share a warehouse, and how their kernels are cut into cells.

KernelWarehouse: Rethinking the Design of Dynamic Convolution, Li and Yao, ICML 2024, https://arxiv.org/abs/2308.08361

A kernel (C_out, C_in/g, k, k) is cut into mixtures of the shape of a cell, (c_out, c_in) at one kernel position, where
c_out and c_in are the greatest common divisors of the channels of all kernels of the warehouse, times the cell ratios. A
warehouse of budget b holds b cells per mixture.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

Shape = tuple[int, int, int, int]
#: one number for all warehouses, or {pattern of warehouse names: number}
PerWarehouse = float | Mapping[str, float]

SHARING = ('stage', 'role', 'layer')

#: Outputs of one layer's attention above which a warehouse is refused; the largest in the paper's nets is 35,456.
MAX_LOGITS = 2**20

#: Published settings: options of ``KWConv2d`` (the parameters with ImageNet head that they give, in millions).
PRESETS: dict[str, dict[str, dict]] = {
    'resnet18': {
        '1/4x': dict(budget=0.25, cell_in_ratio=0.5, cell_out_ratio=0.5),  # 4.03; the paper says 4.08
        '1/2x': dict(budget=0.5, cell_in_ratio=0.5, cell_out_ratio=0.5),  # 7.43
        '1x': dict(),  # 11.93
        '2x': dict(budget=2),  # 23.24
        '4x': dict(budget=4),  # 45.86
    },
    'resnet50': {
        '1/2x': dict(budget=0.5, cell_in_ratio=0.5, cell_out_ratio=0.5, nonlocal_basis_ratio=0.0625),  # 17.64
        '1x': dict(),  # 28.05
        '4x': dict(budget=4),  # 102.02
    },
    'mobilenet_v2': {
        '1x': dict(),  # 5.17
        '4x': dict(budget=4, sharing='role'),  # 11.38
    },
}


@dataclass(frozen=True)
class LayerCells:
    """The place of one layer in its warehouse.

    Attributes:
        splits: numbers of mixtures along (k, k, C_out, C_in/g).
        start: first cell of the warehouse that counts as the layer's own.
        owned: number of its own cells.
        assignment: per mixture, the cell it starts from; ``num_cells`` stands for the zero cell (the paper's beta).
    """

    splits: tuple[int, int, int, int]
    start: int
    owned: int
    assignment: tuple[int, ...]

    @property
    def num_mixtures(self) -> int:
        """m, the number of mixtures the kernel consists of."""
        return math.prod(self.splits)


@dataclass(frozen=True)
class WarehousePlan:
    """Cells of one warehouse, (num_cells, *cell_shape), and the layers that draw on it."""

    num_cells: int
    cell_shape: tuple[int, int]
    layers: dict[str, LayerCells]


def plan_warehouse(
    shapes: Mapping[str, Shape], budget: float = 1, cell_in_ratio: float = 1, cell_out_ratio: float = 1
) -> WarehousePlan:
    """Cut the kernels of one warehouse into cells (paper, sections 3.2 and 3.3).

    Args:
        shapes: {path: (C_out, C_in/g, k, k)} in forward order.
        budget: b, cells per mixture: a whole number, or one over a whole number.
        cell_in_ratio, cell_out_ratio: cell channels over the greatest common divisor of the layers' channels.

    Raises:
        ValueError: a budget or ratio that the channels don't allow, or a layer whose channels have so little in common
            with the others that the cells shrink to a few numbers.
    """
    step, per_cell = _budget_steps(budget)
    c_out = _cell_channels([s[0] for s in shapes.values()], cell_out_ratio, 'cell_out_ratio')
    c_in = _cell_channels([s[1] for s in shapes.values()], cell_in_ratio, 'cell_in_ratio')
    splits = {path: (s[2], s[3], s[0] // c_out, s[1] // c_in) for path, s in shapes.items()}
    _check_whole(splits, budget, per_cell)
    num_cells = sum(map(math.prod, splits.values())) * step // per_cell
    _check_logits(shapes, splits, num_cells, (c_out, c_in))
    layers, start = {}, 0
    for path, split in splits.items():
        mixtures = math.prod(split)
        layers[path] = LayerCells(
            split, start, mixtures * step // per_cell, _assign(mixtures, start, step, per_cell, num_cells)
        )
        start += layers[path].owned
    return WarehousePlan(num_cells, (c_out, c_in), layers)


def group_convs(convs: Mapping[str, nn.Conv2d], sharing: str = 'stage') -> dict[str, list[str]]:
    """Names of the warehouses and the paths that share each.

    In nets whose stages are called ``layer1``, ``layer2``, ... (mmdet's and mmseg's ResNet and MobileNetV2) the authors'
    rule: the convolutions of the first block that read the previous stage's output belong to that stage (in ResNets conv1
    and the shortcut, in MobileNetV2 the whole block), and MobileNetV2's last convolution to the last stage. Elsewhere,
    layers whose paths agree up to the first number share. Depthwise convolutions never share with dense ones.

    Args:
        sharing: ``'stage'``, all dense convolutions of a stage share one; ``'role'``, only those of the same name within
            a stage; ``'layer'``, none.

    Raises:
        ValueError: an unknown ``sharing``.
    """
    if sharing not in SHARING:
        raise ValueError(f'sharing={sharing!r} must be one of {", ".join(map(repr, SHARING))}')
    groups: dict[str, list[str]] = {}
    for path, conv in convs.items():
        groups.setdefault(path if sharing == 'layer' else _warehouse_name(path, conv, sharing, convs), []).append(path)
    return groups


def value_for(value: PerWarehouse, name: str, option: str) -> float:
    """The number that ``value`` holds for the warehouse ``name``; the first pattern that matches decides."""
    if not isinstance(value, Mapping):
        return value
    for pattern, number in value.items():
        if fnmatchcase(name, pattern):
            return number
    raise ValueError(f"{option}={dict(value)} has no pattern for the warehouse {name!r}; add '*' for the rest")


_STAGED = re.compile(r'(?P<prefix>(?:.*\.)?)layer(?P<stage>\d+)\.(?P<block>\d+)\.(?P<rest>.+)')
_TAIL = re.compile(r'(?P<prefix>(?:.*\.)?)conv2\.conv')  # MobileNetV2's last 1x1 convolution
_STAY = ('conv2', 'conv3')  # of a ResNet stage's first block; conv1 and the shortcut read the previous stage


def _warehouse_name(path, conv, sharing, convs) -> str:
    stage, role = _stage_and_role(path, convs)
    if conv.groups > 1:
        return f'{stage}.depthwise'
    return f'{stage}.{role}' if sharing == 'role' else stage


def _stage_and_role(path: str, convs) -> tuple[str, str]:
    staged, tail = _STAGED.fullmatch(path), _TAIL.fullmatch(path)
    if staged:
        role, stage = staged['rest'].split('.')[0], int(staged['stage'])
        if role == 'conv':  # mmseg's MobileNetV2 numbers the convolutions of a block, mmdet's names them
            role = 'expand_conv' if convs[path].out_channels > convs[path].in_channels else 'linear_conv'
        if staged['block'] == '0' and role not in _STAY:
            stage = max(stage - 1, 1)
        return f'{staged["prefix"]}layer{stage}', role
    if tail:
        last = _last_stage(tail['prefix'], convs)
        if last:
            return last, 'linear_conv'
    parts = path.split('.')
    number = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    return '.'.join(parts[:number]) or path, '.'.join(p for p in parts[number:] if not p.isdigit()) or path


def _last_stage(prefix: str, convs) -> str:
    stages = [_stage_and_role(path, convs)[0] for path in convs if path.startswith(prefix) and _STAGED.fullmatch(path)]
    return stages[-1] if stages else ''


def _budget_steps(budget: float) -> tuple[int, int]:
    """Budget as (cells per mixture, mixtures per cell), one of which is 1."""
    step, per_cell = round(budget), round(1 / budget) if budget > 0 else 0
    if budget >= 1 and math.isclose(step, budget):
        return step, 1
    if 0 < budget < 1 and math.isclose(1 / per_cell, budget):
        return 1, per_cell
    raise ValueError(f'budget={budget!r} must be a whole number (1, 2, 4, ...) or one over a whole number (0.5, 0.25, ...)')


def _cell_channels(channels: list[int], ratio: float, option: str) -> int:
    divisor = math.gcd(*channels)
    if ratio <= 0:
        raise ValueError(f'{option}={ratio} must be positive')
    cell = max(int(divisor * ratio), 1)
    if divisor % cell:
        raise ValueError(
            f'{option}={ratio} gives cells of {cell} channels, which do not divide the {divisor} channels that '
            'the layers of this warehouse have in common; choose 1, 0.5, 0.25, ...'
        )
    return cell


def _check_whole(splits, budget, per_cell) -> None:
    for path, split in splits.items():
        if math.prod(split) % per_cell:
            raise ValueError(
                f'budget={budget} needs {per_cell} mixtures per cell, but the kernel of {path} consists of '
                f'{math.prod(split)}; cut it finer with cell_in_ratio=0.5 and cell_out_ratio=0.5, or leave '
                'the layer out of the warehouse'
            )


def _check_logits(shapes, splits, num_cells, cell) -> None:
    path = max(splits, key=lambda p: math.prod(splits[p]))
    logits = math.prod(splits[path]) * (num_cells + 1)
    if logits <= MAX_LOGITS:
        return
    odd = max(shapes, key=lambda p: _common_without(shapes, p))
    hint = f'{odd} {tuple(shapes[odd])} has least in common with the others' if len(shapes) > 1 else 'it is the only one'
    raise ValueError(
        f'cells of {cell[0]} x {cell[1]} channels are too small: {path} would need {logits:,} attentions '
        f'(at most {MAX_LOGITS:,}). Of the {len(shapes)} layers of this warehouse {hint}; exclude it, or use '
        "larger cell ratios, or sharing='layer'"
    )


def _common_without(shapes, path) -> int:
    rest = [s for p, s in shapes.items() if p != path] or [(1, 1)]
    return math.gcd(*(s[0] for s in rest)) * math.gcd(*(s[1] for s in rest))


def _assign(mixtures, start, step, per_cell, zero_cell) -> tuple[int, ...]:
    """One-to-one for a budget of 1 or more; below it, one mixture in ``per_cell`` has a cell and the others none."""
    cells, assignment = iter(range(start, start + mixtures * step, step)), []
    for i in range(mixtures):
        has_cell = i % per_cell == (i // per_cell) % per_cell
        assignment.append(next(cells) if has_cell else zero_cell)
    return tuple(assignment)

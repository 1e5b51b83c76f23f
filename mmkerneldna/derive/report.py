"""What a derivation did, as a table and as data."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from io import StringIO
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from .source import listed

EXACT, IDENTITY, FITTED, NEW = 'exact', 'identity', 'fitted', 'new'

RIVAL_COLUMNS = ('exact start', 'cannot start', 'largest start error', 'largest output error')


@dataclass
class ChildRow:
    """One child.

    Attributes:
        child (str): path.
        parent (str): path.
        kind (str): ``'exact'`` (computes what it did), ``'identity'`` (in a block that adds nothing) or ``'fitted'``.
        kernel_error (float): ||fitted - own kernel|| / ||own kernel||, at the start.
        output_error (float, optional): squared error of its block's output over the output's power, on the images, with the
            dense net's input, in the end.
        aligned (bool): whether its filters were put into the order of its parent's.
    """

    child: str
    parent: str
    kind: str
    kernel_error: float
    output_error: float | None = None
    aligned: bool = False


@dataclass
class RivalRow:
    """One dynamic layer in the place of a static convolution.

    Attributes:
        rival (str): path.
        layer (str): its class.
        kind (str): ``'exact'`` (starts as the static convolution) or ``'new'`` (cannot).
        start_error (float): ||difference|| / ||static output|| of the layer alone on noise, at the start.
        reason (str, optional): why it cannot.
        output_error (float, optional): squared error of its block's output over the output's power, on the images, with the
            dense net's input, in the end.
    """

    rival: str
    layer: str
    kind: str
    start_error: float
    reason: str | None = None
    output_error: float | None = None


@dataclass
class LevelRow:
    """Features of one output level against the dense net's: Pearson correlation, ||difference|| / ||dense||."""

    level: int
    correlation: float
    error: float


@dataclass
class DeriveReport:
    """What :func:`mmkerneldna.derive.derive` did; ``print(report)`` is a table.

    Attributes:
        children (list): a :class:`ChildRow` each.
        rivals (list): a :class:`RivalRow` for each dynamic layer.
        identities (list[str]): blocks that were added as identities.
        levels (list): a :class:`LevelRow` each; empty without images.
        blocks (dict): changed block -> squared error over power of its output, with the dense net's input.
        parameters_before (int): of the dense source in the target's parts.
        parameters_after (int): of the target, each shared kernel once.
        steps (int): of reconstruction.
        loss (list[float]): of each step.
        seconds (float): in all.
        left_out (list[str]): parts of the source that the target has no place for (a classifier).
        kept (list[str]): entries of the target that the source does not give (only if partial sources are allowed).
    """

    children: list[ChildRow] = field(default_factory=list)
    rivals: list[RivalRow] = field(default_factory=list)
    identities: list[str] = field(default_factory=list)
    levels: list[LevelRow] = field(default_factory=list)
    blocks: dict[str, float] = field(default_factory=dict)
    parameters_before: int = 0
    parameters_after: int = 0
    steps: int = 0
    loss: list[float] = field(default_factory=list)
    seconds: float = 0.0
    left_out: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    def of_kind(self, kind: str) -> list[ChildRow]:
        """The children that are exact, fitted, or in identity blocks."""
        return [row for row in self.children if row.kind == kind]

    def by_layer(self) -> dict[str, list[RivalRow]]:
        """The dynamic layers of each class."""
        classes = dict.fromkeys(row.layer for row in self.rivals)
        return {layer: [row for row in self.rivals if row.layer == layer] for layer in classes}

    def obstacles(self) -> dict[str, list[str]]:
        """Why dynamic layers cannot start as static ones -> the paths of those."""
        reasons = dict.fromkeys(row.reason for row in self.rivals if row.reason)
        return {reason: [row.rival for row in self.rivals if row.reason == reason] for reason in reasons}

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)

    def headline(self) -> str:
        """What is exact, fitted and new, in at most five lines."""
        counts = ', '.join(
            f'{len(self.of_kind(kind))} {text}'
            for kind, text in ((EXACT, 'exact'), (IDENTITY, 'in identity blocks'), (FITTED, 'fitted'))
        )
        parts = [f'{len(self.children)} children, {counts}'] if self.children or not self.rivals else []
        parts += [
            f'{sum(row.kind == EXACT for row in rows)} of {len(rows)} {layer} start exactly'
            for layer, rows in self.by_layer().items()
        ]
        lines = [
            f'derived from dense weights: {"; ".join(parts)}; '
            f'parameters {self.parameters_before / 1e6:.3f} M -> {self.parameters_after / 1e6:.3f} M'
        ]
        if self.identities:
            lines.append(f'new blocks, identities for now: {", ".join(self.identities)}')
        unformed = [f'fitted {", ".join(r.child for r in self.of_kind(FITTED))}'] if self.of_kind(FITTED) else []
        unformed += [f'without a static start {listed(paths)} ({reason})' for reason, paths in self.obstacles().items()]
        if unformed:
            lines.append(f'to be trained or reconstructed: {"; ".join(unformed)}')
        if self.left_out:
            lines.append(f'not used of the source: {", ".join(self.left_out)}')
        if self.kept:
            lines.append(f'not in the source, as they were: {len(self.kept)} entries, such as {self.kept[0]}')
        return '\n'.join(lines)

    def __str__(self) -> str:
        parts = [self.headline()]
        if self.children or not self.rivals:
            parts.append(
                render(
                    'child',
                    ('parent', 'start', 'kernel error', 'output error'),
                    [
                        (
                            row.child,
                            row.parent,
                            row.kind + (', aligned' if row.aligned else ''),
                            number(row.kernel_error),
                            number(row.output_error),
                        )
                        for row in self.children
                    ],
                )
            )
        if self.rivals:
            parts.append(
                render(
                    'dynamic layer', RIVAL_COLUMNS, [(layer, *_rival_cells(rows)) for layer, rows in self.by_layer().items()]
                )
            )
        if self.levels:
            parts.append(
                render(
                    'level',
                    ('correlation', 'relative error'),
                    [(str(row.level), f'{row.correlation:.4f}', number(row.error)) for row in self.levels],
                )
            )
        if self.steps:
            parts.append(f'{self.steps} steps of reconstruction, loss {number(self.loss[0])} -> {number(self.loss[-1])}')
        return '\n'.join(parts + [f'{self.seconds:.1f} s'])


def level_rows(ours: Sequence[Sequence[Tensor]], theirs: Sequence[Sequence[Tensor]]) -> list[LevelRow]:
    """Compare features level by level.

    Args:
        ours, theirs: for each batch the tensors of all levels.
    """
    rows = []
    for level, (mine, other) in enumerate(zip(zip(*ours), zip(*theirs))):
        a, b = (torch.cat([t.double().flatten() for t in tensors]) for tensors in (mine, other))
        centred = a - a.mean(), b - b.mean()
        correlation = (centred[0] @ centred[1]) / (centred[0].norm() * centred[1].norm()).clamp_min(1e-12)
        rows.append(LevelRow(level, float(correlation), float((a - b).norm() / b.norm().clamp_min(1e-12))))
    return rows


def _rival_cells(rows: Sequence[RivalRow]) -> tuple[str, ...]:
    exact = sum(row.kind == EXACT for row in rows)
    outputs = [row.output_error for row in rows if row.output_error is not None]
    return (
        str(exact),
        str(len(rows) - exact),
        number(max(row.start_error for row in rows)),
        number(max(outputs) if outputs else None),
    )


def number(value: float | None) -> str:
    return '-' if value is None else '0' if value == 0 else f'{value:.3g}'


def render(first: str, names: Sequence[str], rows: Sequence[tuple[str, ...]]) -> str:
    table = Table(box=None, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for name in names:
        table.add_column(name, no_wrap=True, justify='left' if name in ('parent', 'start') else 'right')
    for row in rows:
        table.add_row(*row)
    written = StringIO()
    console = Console(file=written, width=160, color_system=None)
    console.print(table)
    return written.getvalue().rstrip()

"""Calls next to what they are compared with, in turns: the rows of a table of ratios and their targets."""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from .environment import describe, environment
from .latency import Timing, time_interleaved
from .tables import Column, rich_table, write_json

COLUMNS = (
    Column('what', 'what'),
    Column('case', 'case'),
    Column('ms', 'ms', 2, doubt='disturbed'),
    Column('baseline', 'compared with'),
    Column('baseline_ms', 'its ms', 2, doubt='disturbed'),
    Column('ratio', 'ratio', 3, doubt='disturbed'),
    Column('target', 'at most', 2),
)


@dataclass(frozen=True)
class Case:
    """One row: a call, what it is compared with, and the ratio to reach.

    Attributes:
        baseline (str): name of the other call.
    """

    what: str
    case: str
    call: Callable[[], Any]
    baseline: str
    baseline_call: Callable[[], Any]
    target: float | None = None


def measure_pair(case: Case, device: str, repeats: int, warmup: int) -> dict[str, Any]:
    """The row of a case: it and its baseline take turns, without gradients. ``error`` where one of them failed."""
    calls = {'mine': torch.no_grad()(case.call), 'other': torch.no_grad()(case.baseline_call)}
    timings = time_interleaved(calls, device, repeats, warmup)
    mine, other = timings['mine'], timings['other']
    row: dict[str, Any] = dict(what=case.what, case=case.case, baseline=case.baseline, target=case.target)
    if not (isinstance(mine, Timing) and isinstance(other, Timing)):
        return dict(row, error=f'{mine} / {other}')
    disturbed = mine.disturbed or other.disturbed or None
    return dict(row, ms=mine.median, baseline_ms=other.median, ratio=mine.median / other.median, disturbed=disturbed)


def report_pairs(cases: Iterable[Case], args: argparse.Namespace, device: str = 'cpu') -> None:
    """Measure, print the table below its environment, and write both where ``args.json`` says.

    Args:
        cases: made one after another, so that each may leave a shared model as it needs it.
        args: with ``repeats``, ``warmup`` and ``json`` (a path or None).
        device: that the calls run on.
    """
    console, facts = Console(width=150), environment(device)
    rows = [measure_pair(case, device, args.repeats, args.warmup) for case in cases]
    console.print(f'{describe(facts)}, {args.repeats} rounds')
    console.print(rich_table(rows, COLUMNS))
    if args.json:
        write_json(Path(args.json), dict(environment=facts, rows=rows))

"""A comparison as a whole: which runs, one after the other, then their cost in turns."""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from mmengine.config import Config, DictAction
from rich.console import Console

from .. import launch
from .._quiet import is_verbose
from ..errors import UsageError
from ..launch.shorten import scale_schedule
from .comparison import Run, Variant, execute, recipe_of
from .progress import make_display, read_event
from .results import Row
from .scores import SCORES


@dataclass(frozen=True)
class Study:
    """Variants times seeds.

    Attributes:
        variants: the first is what gains and ratios refer to.
        work_dir (Path): of all runs.
        tools (Path): folder of train.py and test.py.
        seeds: of the trainings.
        options: ``key=value`` for every variant, as for ``--cfg-options``.
        train_flags: for tools/train.py.
        lengths: ``max_epochs``, ``max_iters`` of :func:`scale_schedule`.
        facts: more that makes a run the same run, such as a digest of its data.
        anew (bool): a folder with a run of another recipe is emptied, not refused.
    """

    variants: Sequence[Variant]
    work_dir: Path
    tools: Path
    seeds: Sequence[int] = (0,)
    options: Sequence[str] = ()
    train_flags: Sequence[str] = ()
    lengths: Mapping[str, int | None] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    anew: bool = False

    def __post_init__(self) -> None:
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names):
            raise UsageError(f'two variants have one name ({", ".join(names)}); write NAME=CONFIG')

    @property
    def flags(self) -> list[str]:
        """All flags of a training."""
        lengths = [(f'--{key.replace("_", "-")}', str(value)) for key, value in self.lengths.items() if value is not None]
        return [*self.train_flags, *(text for pair in lengths for text in pair)]

    def configs(self) -> dict[str, Config]:
        """The config of each variant with all its changes."""
        return {variant.name: self._resolved(variant) for variant in self.variants}

    def _resolved(self, variant: Variant) -> Config:
        cfg = launch.load_config(variant.config, as_dict([*variant.options, *self.options]), variant=variant.swap)
        scale_schedule(cfg, **self.lengths)
        return cfg

    def plan(self) -> tuple[list[Run], dict[str, Config]]:
        """All runs, seed by seed: a comparison that is stopped early has as many whole seeds as possible."""
        configs = self.configs()
        runs = [
            Run(
                variant,
                seed,
                self.work_dir / variant.name / f'seed_{seed}',
                {**recipe_of(configs[variant.name], seed, self.flags), **self.facts},
                (*variant.options, *self.options),
            )
            for seed in dict.fromkeys(self.seeds)
            for variant in self.variants
        ]
        for run in runs:
            run.claim(self.anew)
        return runs, configs

    def run(self, run: Run, console: Console) -> Row:
        """Bring one run to its end; a line shows where it is."""
        display, start = make_display(console), time.monotonic()
        try:
            row = execute(run, self.flags, lambda line: _show(line, display), self.tools)
        finally:
            display.close()
        display.say(
            f'  {result_line(row)}, {timedelta(seconds=round(time.monotonic() - start))}',
            style='red' if row['score'] is None else None,
        )
        return row


def _show(line: str, display) -> None:
    step = read_event(line)
    if step is not None:
        display.step(step)
    elif is_verbose():
        display.say(line)


def result_line(row: Row) -> str:
    """Score of a finished run, or why there is none."""
    if row['score'] is None:
        return row['note']
    title = next(score.title for score in SCORES if score.name == row['metric'])
    return f'{title} {row["score"]:.1f} ({row["score_from"]})'


def as_dict(options: Sequence[str]) -> dict:
    """``key=value`` as argparse and mmengine read them for the other tools."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--options', nargs='+', action=DictAction, default={})
    return parser.parse_args(['--options', *options] if options else []).options

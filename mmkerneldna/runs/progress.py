"""What is seen of a run: one live line in a terminal, a few plain lines elsewhere, events for the tool that started it."""

import json
import os
import time
from dataclasses import asdict, dataclass
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

EVENT = 'progress: '
EVENTS_WANTED = 'MMKERNELDNA_PROGRESS_EVENTS'
PLAIN_SECONDS = 240


@dataclass(frozen=True)
class Step:
    """Where a run is.

    Attributes:
        phase (str): ``train``, ``val`` or ``test``.
        done, total (int): iterations of that phase.
        loss (float, optional): mean of the latest iterations.
        score (str): of the last evaluation, with its name; empty before the first.
        seconds_left (float, optional): of that phase, at the speed so far.
    """

    phase: str
    done: int
    total: int
    loss: float | None = None
    score: str = ''
    seconds_left: float | None = None

    def facts(self) -> str:
        """Loss, score and time left, as far as they are known."""
        left = None if self.seconds_left is None else timedelta(seconds=round(self.seconds_left))
        parts = ['' if self.loss is None else f'loss {self.loss:.3f}', self.score, '' if left is None else f'{left} left']
        return ', '.join(filter(None, parts))


def read_event(line: str) -> Step | None:
    """The step that an :class:`EventDisplay` wrote into a line of output; None for any other line."""
    return Step(**json.loads(line[len(EVENT) :])) if line.startswith(EVENT) else None


class PlainDisplay:
    """For files and pipes: at most a line for each tenth of a run, and at most one in four minutes."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._phase, self._tenth, self._told = '', 0, time.monotonic()

    def step(self, step: Step) -> None:
        """Perhaps a line."""
        tenth = 10 * step.done // max(step.total, 1)
        if step.phase != self._phase:
            self._phase, self._tenth = step.phase, 0
        if self._tenth < tenth < 10 and time.monotonic() - self._told >= PLAIN_SECONDS:
            self._tenth, self._told = tenth, time.monotonic()
            self.say(f'  {step.phase} {step.done} of {step.total}, {step.facts()}')

    def say(self, text: str, style: str | None = None) -> None:
        """A line that stays."""
        self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)  # paths stay whole

    def close(self) -> None:
        """Nothing is left open."""


class LiveDisplay:
    """For a terminal: one line with a bar, written over; what is said stays above it."""

    def __init__(self, console: Console) -> None:
        self.bar = Progress(
            TextColumn('  {task.fields[phase]}'),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn('{task.fields[facts]}', markup=False),
            console=console,
            transient=True,
        )
        self.task = self.bar.add_task('', phase='', facts='', total=None)

    def step(self, step: Step) -> None:
        """Write the line anew; the first step opens it."""
        self.bar.start()
        self.bar.update(self.task, completed=step.done, total=step.total, phase=step.phase, facts=step.facts())

    def say(self, text: str, style: str | None = None) -> None:
        """A line that stays."""
        self.bar.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Take the live line away."""
        self.bar.stop()


class EventDisplay(PlainDisplay):
    """For the tool that started this one: every step is a line of JSON, twice a second at most."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._written = 0.0

    def step(self, step: Step) -> None:
        """Tell it."""
        now = time.monotonic()
        if now - self._written >= 0.5 or step.done == step.total:
            self._written = now
            self.console.file.write(EVENT + json.dumps(asdict(step)) + '\n')
            self.console.file.flush()


def make_display(console: Console) -> 'PlainDisplay | LiveDisplay':
    """The one that fits where the output goes."""
    if os.environ.get(EVENTS_WANTED):
        return EventDisplay(console)
    return LiveDisplay(console) if console.is_terminal else PlainDisplay(console)

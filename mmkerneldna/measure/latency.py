"""Latency of several calls, interleaved in one process: the one timer of this package and its tools.

A machine drifts (clocks, caches, other jobs). Calls that take turns share the drift, so their ratio is steadier than
two medians measured one after the other. A measurement that other work on the machine has disturbed is made again, and
marked if that does not help.
"""

import gc
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any, TypeVar

import torch

from ..errors import UsageError
from .clock import Sample, disturbance, sample

T = TypeVar('T')

#: how often a whole measurement is made before a disturbed one is taken as it is
ATTEMPTS = 3


@dataclass(frozen=True)
class Timing:
    """Milliseconds per call.

    Attributes:
        median (float): over the repeats.
        p90 (float): nine repeats of ten were at least as fast.
        repeats (int): how many were timed.
        disturbed (str): what showed that the machine was busy with something else; '' if nothing did.
    """

    median: float
    p90: float
    repeats: int
    disturbed: str = ''

    def throughput(self, images: int) -> float:
        """Images per second, at the median, for a call that treats ``images`` of them."""
        return images * 1e3 / self.median


@dataclass(frozen=True)
class Failure:
    """Why a cell has no number: the cell shows ``str()`` of this."""

    kind: str
    message: str

    @classmethod
    def of(cls, error: BaseException) -> 'Failure':
        """Name an exception; out-of-memory errors of any device are ``OOM``."""
        lines = str(error).strip().splitlines()
        message = lines[0] if lines else ''
        return cls('OOM' if is_out_of_memory(error) else type(error).__name__, message)

    def __str__(self) -> str:
        return 'OOM' if self.kind == 'OOM' else f'{self.kind}: {self.message}'


def is_out_of_memory(error: BaseException) -> bool:
    """True for CUDA's error, for Python's, and for the plain RuntimeError of torch's CPU allocator."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        hint in str(error) for hint in ("can't allocate memory", 'not enough memory', 'out of memory')
    )


def attempt(call: Callable[[], T], device: str | torch.device = 'cpu') -> T | Failure:
    """Result of a call, or a :class:`Failure`; what an out-of-memory error left behind is freed.

    Raises:
        UsageError: it concerns the whole command, not one cell.
    """
    try:
        return call()
    except UsageError:
        raise
    except Exception as error:
        failure = Failure.of(error)
    gc.collect()
    if torch.device(device).type == 'cuda':
        torch.cuda.empty_cache()
    return failure


def time_interleaved(
    calls: Mapping[str, Callable[[], Any]],
    device: str | torch.device = 'cpu',
    repeats: int = 20,
    warmup: int = 5,
    budget_s: float | None = None,
) -> dict[str, Timing | Failure]:
    """Time calls in turns, again where a measurement was disturbed: see :func:`interleaved_samples`.

    Args:
        calls (mapping): name -> call without arguments.
        device (str): synchronised before and after each call.
        repeats (int): timed rounds.
        warmup (int): rounds before them.
        budget_s (float, optional): seconds for all of it, warm-up and second attempts too. Where they are short there are
            fewer repeats, at least one.

    Returns:
        dict: name -> :class:`Timing`, or the :class:`Failure` of a call that raised; the others go on.
    """
    end = None if budget_s is None else monotonic() + budget_s
    best: dict[str, Timing | Failure] = {}
    for number in range(ATTEMPTS):
        start = monotonic()
        rounds = interleaved_samples(calls, device, repeats, 0 if number else warmup, end)
        timings = {name: taken if isinstance(taken, Failure) else summarize(taken, device) for name, taken in rounds.items()}
        best = min(best or timings, timings, key=_trouble)
        took = monotonic() - start
        if not any(getattr(timing, 'disturbed', '') for timing in best.values()) or _passes(end, took):
            break
    return best


def interleaved_samples(
    calls: Mapping[str, Callable[[], Any]],
    device: str | torch.device = 'cpu',
    repeats: int = 20,
    warmup: int = 5,
    end: float | None = None,
) -> dict[str, list[Sample] | Failure]:
    """Each round runs every call once, each round starts with another one.

    Args:
        end (float, optional): of ``time.monotonic()``; only the first round of warming up and the first timed one may pass
            it. Warming up takes half of the time until then at most.

    Returns:
        dict: name -> its samples, the n-th of all names from one round; or the :class:`Failure` of a call that raised.
    """
    if repeats < 1 or warmup < 0:
        raise ValueError(f'repeats={repeats} must be at least 1 and warmup={warmup} at least 0')
    rounds = _Rounds(calls, device)
    rounds.run(warmup, None if end is None else (monotonic() + end) / 2)
    rounds.samples = {name: [] for name in calls}
    rounds.run(repeats, end)
    return {name: rounds.failures.get(name, rounds.samples[name]) for name in calls}


class _Rounds:
    """Runs rounds of calls and keeps their samples."""

    def __init__(self, calls: Mapping[str, Callable[[], Any]], device: str | torch.device) -> None:
        self.calls, self.device, self.count = calls, device, 0
        self.samples: dict[str, list[Sample]] = {name: [] for name in calls}
        self.failures: dict[str, Failure] = {}

    def run(self, count: int, end: float | None) -> None:
        """Run one round, and up to ``count`` while one more as long as the last ends in time."""
        took = 0.0
        for index in range(count):
            if index and _passes(end, took):
                return
            start = monotonic()
            self._round()
            took = monotonic() - start

    def _round(self) -> None:
        for name in _rotated([name for name in self.calls if name not in self.failures], self.count):
            taken = attempt(partial(sample, self.calls[name], self.device), self.device)
            if isinstance(taken, Failure):
                self.failures[name] = taken
            else:
                self.samples[name].append(taken)
        self.count += 1


def _passes(end: float | None, seconds: float) -> bool:
    """Whether what takes so long would end too late."""
    return end is not None and monotonic() + seconds > end


def summarize(samples: Sequence[Sample], device: str | torch.device = 'cpu') -> Timing:
    """Median and 90th percentile (nearest rank) of the repeats' wall times, and whether they were disturbed."""
    ordered = sorted(s.wall for s in samples)
    rank = -(-9 * len(ordered) // 10)
    return Timing(statistics.median(ordered), ordered[rank - 1], len(ordered), disturbance(samples, device))


def _trouble(timings: Mapping[str, Timing | Failure]) -> tuple[int, int, float]:
    """Sorts measurements of the same calls: failures, disturbed ones, total time."""
    taken = [timing for timing in timings.values() if isinstance(timing, Timing)]
    return len(timings) - len(taken), sum(bool(t.disturbed) for t in taken), sum(t.median for t in taken)


def _rotated(names: list[str], by: int) -> list[str]:
    by = by % len(names) if names else 0
    return names[by:] + names[:by]

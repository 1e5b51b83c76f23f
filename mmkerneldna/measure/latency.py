"""Latency of several calls, interleaved in one process.

A machine drifts (clocks, caches, other jobs). Calls that take turns share the drift, so their ratio is steadier than
two medians measured one after the other.
"""
import gc
import statistics
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Union

import torch

from ..errors import UsageError


@dataclass(frozen=True)
class Timing:
    """Milliseconds per call.

    Attributes:
        median (float): over the repeats.
        p90 (float): nine repeats of ten were at least as fast.
        repeats (int): how many were timed.
    """
    median: float
    p90: float
    repeats: int

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
        hint in str(error) for hint in ("can't allocate memory", 'not enough memory', 'out of memory'))


def synchronize(device: Union[str, torch.device]) -> None:
    """Wait for all work of an accelerator; nothing to wait for on the CPU."""
    kind = torch.device(device).type
    if kind == 'cuda':
        torch.cuda.synchronize(device)
    elif kind != 'cpu':
        getattr(torch, kind).synchronize()


def attempt(call: Callable[[], Any], device: Union[str, torch.device] = 'cpu') -> Union[Any, Failure]:
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


def time_interleaved(calls: Mapping[str, Callable[[], Any]], device: Union[str, torch.device] = 'cpu',
                     repeats: int = 20, warmup: int = 5) -> Dict[str, Union[Timing, Failure]]:
    """Time calls in turns: each round runs every call once, each round starts with another one.

    Args:
        calls (mapping): name -> call without arguments.
        device (str): synchronised before and after each call.
        repeats (int): timed rounds.
        warmup (int): rounds before them.

    Returns:
        dict: name -> :class:`Timing`, or the :class:`Failure` of a call that raised; the others go on.
    """
    if repeats < 1 or warmup < 0:
        raise ValueError(f'repeats={repeats} must be at least 1 and warmup={warmup} at least 0')
    times: Dict[str, List[float]] = {name: [] for name in calls}
    failures: Dict[str, Failure] = {}
    for index in range(warmup + repeats):
        for name in _rotated([name for name in calls if name not in failures], index):
            elapsed = attempt(lambda: _time_once(calls[name], device), device)
            if isinstance(elapsed, Failure):
                failures[name] = elapsed
            elif index >= warmup:
                times[name].append(elapsed)
    return {name: failures[name] if name in failures else summarize(times[name]) for name in calls}


def summarize(milliseconds: List[float]) -> Timing:
    """Median and 90th percentile (nearest rank) of the repeats."""
    ordered = sorted(milliseconds)
    rank = -(-9 * len(ordered) // 10)
    return Timing(statistics.median(ordered), ordered[rank - 1], len(ordered))


def _time_once(call: Callable[[], Any], device) -> float:
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return (time.perf_counter() - start) * 1e3


def _rotated(names: List[str], by: int) -> List[str]:
    by = by % len(names) if names else 0
    return names[by:] + names[:by]

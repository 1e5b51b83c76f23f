"""One timed call, and how to tell that the machine was busy with something else meanwhile."""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

#: share of the wall time that this process's threads, ready to run, may wait for a processor
QUEUED_SHARE = 0.1
#: a call on a CPU keeps at least one thread running; below this share of the wall time something held it up
CPU_SHARE = 0.75
#: repeats of one call on an idle machine lie closer together than this
MEDIAN_OVER_FASTEST = 1.5
#: ms; a thread that is woken up waits for some microseconds on any machine
WAKE_UP = 0.2


@dataclass(frozen=True)
class Sample:
    """One call, in milliseconds.

    Attributes:
        wall (float): that passed.
        cpu (float): of processors used, by all threads of the process.
        queued (float): that threads of the process were ready to run and had no processor, summed up; 0 where the system
            does not tell (only Linux does).
    """

    wall: float
    cpu: float
    queued: float = 0.0


def synchronize(device: str | torch.device) -> None:
    """Wait for all work of an accelerator; nothing to wait for on the CPU."""
    kind = torch.device(device).type
    if kind == 'cuda':
        torch.cuda.synchronize(device)
    elif kind != 'cpu':
        getattr(torch, kind).synchronize()


def sample(call: Callable[[], Any], device: str | torch.device = 'cpu') -> Sample:
    """Run a call once, with the clocks around it and the device synchronised."""
    synchronize(device)
    queued, cpu, wall = _queued_ns(), time.process_time_ns(), time.perf_counter_ns()
    call()
    synchronize(device)
    wall, cpu, queued = time.perf_counter_ns() - wall, time.process_time_ns() - cpu, _queued_ns() - queued
    return Sample(wall / 1e6, cpu / 1e6, max(0, queued) / 1e6)


def disturbance(samples: Sequence[Sample], device: str | torch.device = 'cpu') -> str:
    """What shows that repeats of one call are not what they would be on an idle machine; '' if nothing does.

    Processor time alone does not tell: with several threads, one that is held up makes the others wait, and waiting may count
    as work (OpenMP's threads spin) or not. Linux says directly how long threads waited for a processor.
    """
    wall = statistics.median(s.wall for s in samples)
    queued = statistics.median(s.queued for s in samples)
    if queued > max(QUEUED_SHARE * wall, WAKE_UP):
        return f'threads waited {queued:.1f} ms for a processor in a call of {wall:.1f} ms'
    share = statistics.median(s.cpu / s.wall if s.wall else 1 for s in samples)
    if torch.device(device).type == 'cpu' and share < CPU_SHARE:
        return f'the process had a processor for {share:.0%} of the time'
    fastest = min(s.wall for s in samples)
    if wall > MEDIAN_OVER_FASTEST * fastest:
        return f'the median of {wall:.1f} ms is {wall / fastest:.1f} times the fastest repeat'
    return ''


def _queued_ns() -> int:
    """Run-queue delay of all threads of this process so far."""
    total = 0
    try:
        for thread in os.listdir('/proc/self/task'):
            with open(f'/proc/self/task/{thread}/schedstat') as file:
                total += int(file.read().split()[1])
    except (OSError, IndexError, ValueError):  # another system, or a thread that has just ended
        return 0
    return total

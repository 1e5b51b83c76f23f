"""Cost of a model that computes more for one image than for another: measured over a sample of images."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..routing.keep import decisions, keep_gates
from .complexity import count_macs
from .latency import Failure, Timing, time_interleaved

Calls = Sequence[Callable[[], Any]]


@dataclass(frozen=True)
class Spread:
    """Latency of one model over images, in ms; of each image the median of its repeats counts.

    Attributes:
        mean, median, p90 (float): across images; the last by nearest rank.
        repeats (int): per image, of the one with the fewest.
        disturbed (str): what showed that the machine was busy with something else; '' if nothing did.
    """

    mean: float
    median: float
    p90: float
    repeats: int
    disturbed: str = ''

    @classmethod
    def of(cls, timings: Sequence[Timing]) -> 'Spread':
        """From the timing of every image; of a single one the 90th percentile is over its repeats."""
        if len(timings) == 1:
            (only,) = timings
            return cls(only.median, only.median, only.p90, only.repeats, only.disturbed)
        ordered = sorted(timing.median for timing in timings)
        rank = -(-9 * len(ordered) // 10)
        return cls(
            statistics.fmean(ordered),
            statistics.median(ordered),
            ordered[rank - 1],
            min(timing.repeats for timing in timings),
            next((timing.disturbed for timing in timings if timing.disturbed), ''),
        )


def time_over_images(
    models: Mapping[str, Calls], device: str = 'cpu', repeats: int = 5, warmup: int = 1, budget_s: float | None = None
) -> dict[str, Spread | Failure]:
    """Time every model on every image, all in turns.

    Args:
        models: name -> one call per image.
        device, repeats, warmup, budget_s: as in :func:`.latency.time_interleaved`; repeats per image.

    Returns:
        dict: name -> :class:`Spread`, or the first :class:`Failure` of its calls.
    """
    calls = {(name, number): call for name, images in models.items() for number, call in enumerate(images)}
    keyed = {f'{name} #{number}': call for (name, number), call in calls.items()}
    timings = time_interleaved(keyed, device, repeats, warmup, budget_s)
    results: dict[str, Spread | Failure] = {}
    for name, images in models.items():
        taken = [timings[f'{name} #{number}'] for number in range(len(images))]
        failure = next((timing for timing in taken if isinstance(timing, Failure)), None)
        results[name] = failure or Spread.of([timing for timing in taken if isinstance(timing, Timing)])
    return results


def gmacs_over_images(calls: Calls) -> float:
    """Mean over images of what was run, in GMACs; of a model that is not deployed (see :mod:`.complexity`)."""
    return statistics.fmean(count_macs(call) for call in calls) / 1e9


def keep_rates(model: nn.Module, calls: Calls) -> dict[str, float]:
    """``keep_rate``, the mean over the gates of ``model`` weighted by cost, and ``keep/<gate>`` of each; {} without gates."""
    if not keep_gates(model):
        return {}
    with decisions(model) as seen:
        for call in calls:
            call()
        return dict(keep_rate=seen.rate(), **{f'keep/{_short(path)}': rate for path, rate in seen.rates().items()})


def _short(path: str) -> str:
    """Without where the gates of a backbone are: ``layer3_2``."""
    return path.rpartition('routing_gates.')[2]

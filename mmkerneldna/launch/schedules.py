"""Schedulers of a config that mmengine would refuse, or fail on half-way, against the length of the run.

mmengine builds the schedulers when training starts and then says which numbers clash, not where they stand. A schedule
that is merely longer than the run, or begins after its end, is fine there, and so it is here.
"""
import math
from dataclasses import dataclass
from numbers import Real
from typing import Iterator, Optional, Tuple

from mmengine.config import Config
from mmengine.runner import Runner

from ..errors import UsageError


def check_schedules(cfg: Config, runner: Optional[Runner] = None) -> None:
    """Refuse a scheduler that covers no step, has bounds that are no numbers, or whose ``total_steps`` run out.

    Args:
        cfg: the whole config.
        runner: tells how many iterations an epoch has. Without it, whatever depends on that is left open: parts of an
            epoch converted to iterations, and iterations in a run that is counted in epochs.

    Raises:
        UsageError: names the scheduler, its range, the length of the run, and what to set.
    """
    schedulers = list(_schedulers(cfg.get('param_scheduler'), 'param_scheduler'))
    length = cfg.get('train_cfg') or {}
    if not schedulers or not isinstance(length.get('max_iters', length.get('max_epochs')), int):
        return
    run = _Run.of(length, len(runner.train_loop.dataloader) if runner else None)
    for path, settings in schedulers:
        schedule = _Schedule(path, settings, run)
        schedule.check_settings()
        schedule.check_range()
        schedule.check_total_steps()


def _schedulers(node, path: str) -> Iterator[Tuple[str, dict]]:
    """One scheduler, a list of them, or either for each of several optimizers."""
    if isinstance(node, dict) and 'type' in node:
        yield path, node
    elif isinstance(node, (dict, list, tuple)):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _schedulers(child, f'{path}.{key}')


@dataclass(frozen=True)
class _Run:
    """Length of a run as mmengine counts it: one counted in iterations is one epoch. None: not known yet."""
    epochs: int
    iterations: Optional[int]
    epoch_length: Optional[int]
    by_epoch: bool

    @classmethod
    def of(cls, train_cfg: dict, epoch_length: Optional[int]) -> '_Run':
        if 'max_iters' in train_cfg:
            return cls(1, train_cfg['max_iters'], epoch_length, by_epoch=False)
        epochs = train_cfg['max_epochs']
        return cls(epochs, epochs * epoch_length if epoch_length else None, epoch_length, by_epoch=True)

    def __str__(self) -> str:
        if not self.by_epoch:
            return f'max_iters={self.iterations}'
        return f'max_epochs={self.epochs}' + (f' of {self.epoch_length} iterations' if self.epoch_length else '')


class _Schedule:
    """One scheduler's settings against the run."""

    def __init__(self, path: str, settings: dict, run: _Run) -> None:
        self.path, self.settings, self.run = path, settings, run
        self.kind = settings['type'] if isinstance(settings['type'], str) else settings['type'].__name__
        self.by_epoch = settings.get('by_epoch', True)
        self.converted = bool(settings.get('convert_to_iter_based'))
        self.length = run.epochs if self.by_epoch else run.iterations  # the end of a scheduler without one
        self.begin, self.end = settings.get('begin', 0), settings.get('end', self.length)

    def check_settings(self) -> None:
        unit = 'epochs' if self.by_epoch else 'iterations'
        for key in ('begin', 'end'):
            value = self.settings.get(key, 0)
            if not isinstance(value, Real):
                self._refuse(f'{key}={value!r} is no number of {unit}', f'set {self.path}.{key} to one')
        if self.converted and not self.by_epoch:
            self._refuse('convert_to_iter_based=True converts epochs, and by_epoch=False counts iterations already',
                         f'set {self.path}.convert_to_iter_based=False')

    def check_range(self) -> None:
        first, last = self._step(self.begin), self._step(self.end)
        if None in (first, last) or last > first:
            return
        text = f'covers no {"epoch" if self.by_epoch else "iteration"}: begin={self.begin}, end={self.end}'
        text += '' if 'end' in self.settings else ' (that of the run, since it states none)'
        text += f' are the iterations {first} to {last}' if self.end > self.begin else ''
        self._refuse(f'{text}, in a run of {self.run}', self._longer())

    def check_total_steps(self) -> None:
        """mmengine's one-cycle schedule raises in the middle of the run when it is stepped beyond ``total_steps``."""
        total, factor = self.settings.get('total_steps'), self._iterations_per_unit()
        stepped = self.run.iterations if self.converted else self.length
        if not self.kind.startswith('OneCycle') or not isinstance(total, int) or None in (factor, stepped):
            return
        last = min(self._step(self.end) - 1, stepped) - self._step(self.begin)
        if last > total * factor > 0:
            self._refuse(f'total_steps={total} are over before the schedule, begin={self.begin}, end={self.end}, in a run '
                         f'of {self.run}', f'set {self.path}.total_steps={math.ceil(last / factor)} or more')

    def _iterations_per_unit(self) -> Optional[int]:
        return self.run.epoch_length if self.converted else 1

    def _step(self, bound: Optional[float]) -> Optional[float]:
        """A bound as mmengine compares it; None where that is not known yet."""
        factor = self._iterations_per_unit()
        if bound is None or not self.converted:
            return bound
        if factor is None:
            return bound if float(bound).is_integer() else None
        return bound * factor if self.kind.startswith('QuadraticWarmup') else int(bound * factor)

    def _longer(self) -> str:
        """What to set for a range that covers something."""
        if self.converted and self.run.epoch_length and self.end > self.begin:
            return f'set {self.path}.end at least one iteration ({1 / self.run.epoch_length:.4g} epochs) above begin'
        example = f', e.g. {self.path}.end={self.length}' if self.length and self.length > self.begin else ''
        advice = f'set {self.path}.end above {self.begin}{example}'
        if self.by_epoch and not self.run.by_epoch:
            return f'{advice}, or {self.path}.by_epoch=False to count iterations: such a run is one epoch'
        return advice if self.begin <= 0 else f'{advice}, or a lower {self.path}.begin'

    def _refuse(self, what: str, advice: str) -> None:
        raise UsageError(f'{self.path} ({self.kind}): {what}; {advice}')

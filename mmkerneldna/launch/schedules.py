"""Schedulers of a config that mmengine would refuse, or fail on half-way.

mmengine builds the schedulers when training starts and then says which numbers clash, not where they stand. Here they
are built beforehand, by mmengine's own builder on an optimizer that is thrown away. A schedule that is merely longer
than the run, or begins after its end, is fine there, and so it is here.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.optim.scheduler.param_scheduler import INF
from mmengine.registry import PARAM_SCHEDULERS, DefaultScope
from mmengine.runner import Runner

from ..errors import UsageError, explain

#: stands for the iterations of an epoch until the data are there: with so many, no part of an epoch is too short
_LONG_EPOCH = 10**6


class _Run(NamedTuple):
    """Length of a run as mmengine counts it: one counted in iterations is one epoch. None: not known yet."""

    epochs: int
    iterations: int | None
    epoch_length: int | None
    name: str

    @classmethod
    def of(cls, train_cfg: dict, epoch_length: int | None) -> '_Run':
        if 'max_iters' in train_cfg:
            return cls(1, train_cfg['max_iters'], epoch_length, f'max_iters={train_cfg["max_iters"]}')
        epochs = train_cfg['max_epochs']
        unit = f' of {epoch_length} iterations' if epoch_length else ''
        return cls(epochs, epochs * epoch_length if epoch_length else None, epoch_length, f'max_epochs={epochs}{unit}')


def check_schedules(cfg: Config, runner: Runner | None = None) -> None:
    """Refuse a scheduler that can't be built, covers no step, or whose ``total_steps`` run out.

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
    groups = getattr(runner and runner.optim_wrapper, 'param_groups', None)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        for path, settings in schedulers:
            _check(path, settings, run, groups)


def _schedulers(node, path: str) -> Iterator[tuple[str, dict]]:
    """One scheduler, a list of them, or either for each of several optimizers."""
    if isinstance(node, dict) and 'type' in node:
        yield path, node
    elif isinstance(node, (dict, list, tuple)):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _schedulers(child, f'{path}.{key}')


def _check(path: str, settings: dict, run: _Run, groups: list | None) -> None:
    end = settings.get('end', run.epochs if settings.get('by_epoch', True) else run.iterations or INF)  # as mmengine
    what = _described(path, settings, end, run)
    default_args = dict(optimizer=_optimizer(settings, groups), epoch_length=run.epoch_length or _LONG_EPOCH)
    try:
        scheduler = PARAM_SCHEDULERS.build(dict(settings, end=end), default_args=default_args)
    except KeyError as error:
        raise UsageError(f'{path}: {explain(error) or error}') from error
    except (AssertionError, TypeError, ValueError) as error:
        reason = ' '.join(str(error).split())
        advice = _range_advice(path, settings, run) if reason.startswith('end should') else f'correct {path}'
        raise UsageError(f'{what}: {reason}; {advice}') from error
    _check_total_steps(scheduler, what, path, run)


def _described(path: str, settings: dict, end, run: _Run) -> str:
    kind = getattr(settings['type'], '__name__', settings['type'])
    origin = '' if 'end' in settings else ' (that of the run, since it states none)'
    return f'{path} ({kind}) with begin={settings.get("begin", 0)!r}, end={end!r}{origin} in a run of {run.name}'


def _range_advice(path: str, settings: dict, run: _Run) -> str:
    """What to set for a range that covers something."""
    begin = settings.get('begin', 0)
    if settings.get('convert_to_iter_based') and run.epoch_length:
        return f'set {path}.end at least one iteration ({1 / run.epoch_length:.4g} epochs) above {begin}'
    advice = f'set {path}.end above {begin}'
    if settings.get('by_epoch', True) and 'max_iters' in run.name:
        advice += f', or {path}.by_epoch=False to count iterations: such a run is one epoch'
    return advice


def _optimizer(settings: dict, groups: list | None) -> torch.optim.Optimizer:
    """One to throw away, with the parameter groups of the run where they are known."""
    if not isinstance(groups, list):  # no runner, or several optimizers
        per_group = settings.get('eta_max')
        groups = [{}] * (len(per_group) if isinstance(per_group, (list, tuple)) else 1)
    groups = [{**group, 'params': [torch.nn.Parameter(torch.zeros(1))]} for group in groups]
    return torch.optim.SGD(groups, lr=1.0, momentum=0.9)


def _check_total_steps(scheduler, what: str, path: str, run: _Run) -> None:
    """mmengine's one-cycle schedule raises in the middle of the run when it is stepped beyond ``total_steps``."""
    steps, total = run.epochs if scheduler.by_epoch else run.iterations, getattr(scheduler, 'total_steps', None)
    if None in (steps, total):
        return
    last = min(scheduler.end - 1, steps) - scheduler.begin
    if last > total:
        raise UsageError(f'{what}: its {total} total_steps are over before it; set {path}.total_steps to cover {last}')

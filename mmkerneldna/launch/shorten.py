"""A run of another length: ``--max-epochs`` and ``--max-iters`` scale every length in the config with it."""

import math
from collections.abc import Callable
from typing import Any

from mmengine.config import Config, ConfigDict

from ..errors import UsageError

# what mmengine's schedulers count in epochs or iterations
LENGTHS = ('begin', 'end', 'T_max', 'total_steps', 'step_size')
# hooks that count too: type -> key
HOOK_LENGTHS = {'TemperatureHook': 'length', 'PipelineSwitchHook': 'switch_epoch', 'YOLOXModeSwitchHook': 'num_last_epochs'}


def scale_schedule(cfg: Config, max_epochs: int | None = None, max_iters: int | None = None) -> None:
    """Give a run another length, and its schedule the same shape, in place.

    Scaled are the bounds, periods, steps and milestones of all schedulers (a warm-up in iterations too), the intervals of
    evaluation and of checkpoints, and the hooks of :data:`HOOK_LENGTHS`. A count stays a whole number, at least 1. What
    falls between two epochs becomes a schedule that is stepped by iterations. Logs come more often in a shorter run, never
    less often.

    Args:
        cfg: the whole config.
        max_epochs, max_iters: the new length, in the unit in which the config counts; None leaves it alone.

    Raises:
        UsageError: a length below 1, both, or the unit that the config does not count in.
    """
    flags = {'max_epochs': max_epochs, 'max_iters': max_iters}
    asked = {key: value for key, value in flags.items() if value is not None}
    if not asked:
        return
    ratio = _ratio(cfg.get('train_cfg') or {}, asked)
    if cfg.get('param_scheduler'):
        cfg.param_scheduler = _scaled(cfg.param_scheduler, ratio, cfg.train_cfg.get('max_epochs'))
    cfg.train_cfg.update(asked)
    for key in ('val_interval', 'val_begin'):
        if key in cfg.train_cfg:
            cfg.train_cfg[key] = _count(cfg.train_cfg[key] * ratio)
    if cfg.train_cfg.get('dynamic_intervals'):
        cfg.train_cfg.dynamic_intervals = [
            (_count(start * ratio), _count(interval * ratio)) for start, interval in cfg.train_cfg.dynamic_intervals
        ]
    _scale_hooks(cfg, ratio)


def _ratio(train_cfg: dict, asked: dict) -> float:
    """New length over old."""
    (key, value), *others = asked.items()
    flag = '--' + key.replace('_', '-')
    if others:
        raise UsageError('--max-epochs and --max-iters exclude each other: name the one that the config counts in')
    if value < 1:
        raise UsageError(f'{flag} {value}: at least 1 is needed')
    if not train_cfg.get(key):
        other, unit = ('--max-iters', 'iterations') if key == 'max_epochs' else ('--max-epochs', 'epochs')
        raise UsageError(f'{flag} {value}: the config counts its training in {unit}; use {other}')
    return value / train_cfg[key]


def _count(value: float) -> int:
    return max(1, round(value))


def _scaled(node: Any, ratio: float, epochs: int | None) -> Any:
    """One scheduler, a list of them, or either for each of several optimizers; ``epochs`` of the old run if it has any."""
    if isinstance(node, dict) and 'type' not in node:
        return ConfigDict({name: _scaled(child, ratio, epochs) for name, child in node.items()})
    nodes = [node] if isinstance(node, dict) else node
    return [scheduler for settings in nodes for scheduler in _scale_one(settings, ratio, epochs)]


def _scale_one(scheduler: dict, ratio: float, epochs: int | None) -> list[ConfigDict]:
    """The scheduler at its new length; decays between two epochs become schedulers of their own."""
    settings = ConfigDict(scheduler)
    settings.type = settings.type if isinstance(settings.type, str) else settings.type.__name__
    if not settings.get('by_epoch', True):
        return [_scale_iterations(settings, ratio)]
    if epochs is None:  # a run counted in iterations is one epoch, whatever its length
        return [settings]
    if 'step_size' in settings:
        _steps_to_milestones(settings, epochs)
    _scale_lengths(settings, lambda value: _whole(value * ratio))
    _scale_gamma(settings, ratio)
    return _by_iteration(settings, epochs * ratio) if _has_fraction(settings) else [settings]


def _scale_iterations(settings: ConfigDict, ratio: float) -> ConfigDict:
    """Whole iterations; a warm-up of a few must not round to none."""
    _scale_lengths(settings, lambda value: round(value * ratio))
    if 'end' in settings:
        settings.end = max(settings.end, settings.get('begin', 0) + 1)
    for key in ('T_max', 'step_size'):
        if key in settings:
            settings[key] = max(settings[key], 1)
    _scale_gamma(settings, ratio)
    return settings


def _scale_lengths(settings: ConfigDict, scale: Callable[[float], float]) -> None:
    for key in LENGTHS:
        if key in settings:
            settings[key] = scale(settings[key])
    for key in ('milestones', 'periods'):
        if key in settings:
            settings[key] = [scale(value) for value in settings[key]]


def _scale_gamma(settings: ConfigDict, ratio: float) -> None:
    """A decay at every step: fewer steps, each of more."""
    if settings.type.startswith('Exponential'):
        settings.gamma = settings.gamma ** (1 / ratio)


def _whole(value: float) -> float:
    """An int where the value is one, up to rounding."""
    return round(value) if abs(value - round(value)) < 1e-9 else value


def _steps_to_milestones(settings: ConfigDict, epochs: int) -> None:
    """``StepLR`` as the ``MultiStepLR`` that it is: the new step need not be whole."""
    size = settings.pop('step_size')
    settings.type = settings.type.replace('Step', 'MultiStep')
    settings.milestones = list(range(size, settings.get('end', epochs) - settings.get('begin', 0), size))


def _has_fraction(settings: ConfigDict) -> bool:
    lengths = [settings.get(key, 0) for key in LENGTHS]
    lengths += [*settings.get('milestones', ()), *settings.get('periods', ())]
    return any(not float(value).is_integer() for value in lengths)


def _by_iteration(settings: ConfigDict, epochs: float) -> list[ConfigDict]:
    """Stepped by iterations.

    mmengine passes over a milestone that is no whole iteration. So each becomes a factor from there on; its end lies behind
    the run's, where such a factor is taken back.
    """
    settings.convert_to_iter_based = True
    if 'milestones' not in settings:
        return [settings]
    kept = {key: value for key, value in settings.items() if key in ('param_name', 'by_epoch', 'convert_to_iter_based')}
    return [
        ConfigDict(
            type=settings.type.replace('MultiStep', 'Constant'),
            factor=settings.get('gamma', 0.1),
            begin=settings.get('begin', 0) + milestone,
            end=2 * math.ceil(epochs),
            **kept,
        )
        for milestone in settings.milestones
    ]


def _scale_hooks(cfg: Config, ratio: float) -> None:
    hooks = cfg.get('default_hooks') or {}
    checkpoint, logger = hooks.get('checkpoint'), hooks.get('logger')
    if checkpoint and checkpoint.get('interval', -1) > 0:
        checkpoint.interval = _count(checkpoint.interval * ratio)
    if logger and 'interval' in logger:
        logger.interval = _count(logger.interval * min(ratio, 1))
    for hook in cfg.get('custom_hooks') or []:
        key = HOOK_LENGTHS.get(hook.get('type'))
        if key in hook:
            hook[key] = _count(hook[key] * ratio)

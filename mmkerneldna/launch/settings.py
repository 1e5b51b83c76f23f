"""The parts of a config and the numbers in them: what a library would refuse without naming the setting, or not at all."""

import math
from collections.abc import Iterator, Sequence
from numbers import Real
from typing import NamedTuple

from mmengine.config import Config

from ..errors import UsageError

SPLITS = ('train', 'val', 'test')
_ABSENT = object()
#: these are dicts where there are any
_PARTS = (
    'model',
    'model.backbone',
    'model.data_preprocessor',
    'optim_wrapper',
    'optim_wrapper.optimizer',
    'randomness',
    'default_hooks',
    'env_cfg',
    'visualizer',
    'auto_scale_lr',
    *(f'{split}_{part}' for split in SPLITS for part in ('dataloader', 'cfg', 'dataloader.dataset', 'dataloader.sampler')),
)


class Number(NamedTuple):
    """What a setting may be."""

    low: float
    high: float = math.inf
    whole: bool = True
    also: tuple[float, ...] = ()

    def accepts(self, value) -> bool:
        """Whether it may be ``value``."""
        right = isinstance(value, int if self.whole else Real) and not isinstance(value, bool) and math.isfinite(value)
        return right and (self.low <= value <= self.high or value in self.also)

    def __str__(self) -> str:
        kind = 'a whole number' if self.whole else 'a finite number'
        upper = '' if self.high == math.inf else f' and at most {self.high}'
        return f'{kind} of at least {self.low}{upper}' + ''.join(f', or {value}' for value in self.also)


SEED = Number(0, 2**32 - 1)  # numpy takes no other
_NUMBERS = {
    **{f'{split}_dataloader.batch_size': Number(1) for split in SPLITS},
    **{f'{split}_dataloader.num_workers': Number(0) for split in SPLITS},
    **{f'train_cfg.{key}': Number(1) for key in ('max_epochs', 'max_iters', 'val_interval')},
    'train_cfg.val_begin': Number(0),
    'optim_wrapper.optimizer.lr': Number(0, whole=False),
    'optim_wrapper.optimizer.weight_decay': Number(0, whole=False),
    'optim_wrapper.accumulative_counts': Number(1),
    'optim_wrapper.clip_grad.max_norm': Number(0, whole=False),
    'randomness.seed': SEED,
    'default_hooks.checkpoint.interval': Number(1, also=(-1,)),
    'default_hooks.logger.interval': Number(1),
    'auto_scale_lr.base_batch_size': Number(1),
}


def check_parts(cfg: Config) -> None:
    """Refuse parts that are not what every reader of a config takes them for.

    Raises:
        UsageError: names the part and its value.
    """
    for path in _PARTS:
        value = _setting(cfg, path)
        if value not in (_ABSENT, None) and not isinstance(value, dict):
            raise UsageError(f'{path} is {value!r}, expected a dict of settings')
    for path in ('custom_hooks', 'val_evaluator', 'test_evaluator'):
        for item in _listed(_setting(cfg, path)):
            if not isinstance(item, dict) or 'type' not in item:
                raise UsageError(f'{path} holds {item!r}, expected a dict with a type, or a list of them')
    if 'type' not in (cfg.get('model') or {}):
        raise UsageError(f'model is {cfg.get("model")!r}, expected a dict with a type')


def check_settings(cfg: Config, needed: Sequence[str] = ()) -> None:
    """Refuse a config without the parts that a tool needs, or with a number that no run can have.

    Args:
        cfg: the whole config, after :func:`check_parts`.
        needed: parts without which the tool can't work, e.g. ``'train_dataloader.dataset'``.

    Raises:
        UsageError: names the setting, its value and what was expected.
    """
    for path in needed:
        if _setting(cfg, path) in (_ABSENT, None):
            raise UsageError(f'the config has no {path}, which this tool needs; add it, or name a config that has it')
    for path, number in _NUMBERS.items():
        value = _setting(cfg, path)
        if value not in (_ABSENT, None) and not number.accepts(value):
            raise UsageError(f'{path} is {value!r}, expected {number}')
    for split in SPLITS:
        loader = cfg.get(f'{split}_dataloader') or {}
        if loader.get('persistent_workers') and loader.get('num_workers') == 0:
            raise UsageError(
                f'{split}_dataloader.num_workers is 0, and persistent_workers=True needs at least 1: set '
                f'{split}_dataloader.persistent_workers=False'
            )


def _setting(cfg: Config, path: str):
    """The value at a dotted path; parts of another kind on the way count as absent."""
    node = cfg
    for key in path.split('.'):
        if not isinstance(node, (dict, Config)) or key not in node:
            return _ABSENT
        node = node[key]
    return node


def _listed(value) -> Iterator:
    return iter(value) if isinstance(value, (list, tuple)) else iter(() if value in (_ABSENT, None) else (value,))

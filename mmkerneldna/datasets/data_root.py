"""Point a whole config to data that lie elsewhere."""

import os.path as osp
from typing import Any

from mmengine.config import Config

from ..errors import DataError


def override_data_root(cfg: Config, root: str) -> None:
    """Move ``cfg.data_root`` to ``root``, with every path that was built from it.

    A config computes ``data_root + 'annotations/val.json'`` while it is read, so setting ``data_root`` afterwards
    (``--cfg-options data_root=...``) alone would change nothing.

    Raises:
        DataError: the config has no ``data_root``.
    """
    old = cfg.get('data_root')
    if not isinstance(old, str):
        raise DataError(
            f'cannot move the data root to {root}: {cfg.filename or "the config"} defines no data_root; '
            'override the paths of its dataloaders and evaluators instead'
        )
    for key in list(cfg.keys()):
        if key.endswith(('_dataloader', '_evaluator')):
            cfg[key] = _rebased(cfg[key], old, root)
    cfg.data_root = root


def _rebased(value: Any, old: str, new: str) -> Any:
    if isinstance(value, dict):
        return {key: _rebased(child, old, new) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_rebased(child, old, new) for child in value)
    if isinstance(value, str) and (value.rstrip('/') + '/').startswith(old.rstrip('/') + '/'):
        return osp.join(new, value[len(old.rstrip('/')) :].lstrip('/'))
    return value

"""Where mmengine loads checkpoints: read safely, fetched or found, and told plainly when they are of another architecture."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.logging import print_log
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn

from ..errors import CheckpointError
from .remote import PREFIXES, fetch
from .safe_reading import read_checkpoint

LISTED = 5  # keys named per kind of mismatch


def install_safe_loading(unsafe: bool = False) -> None:
    """Make mmengine get files, short names and web addresses by :func:`.remote.fetch`; forbid torch the unsafe mode elsewhere.

    ``load_from``, ``resume`` and ``init_cfg=dict(type='Pretrained', ...)`` all pass through mmengine's loader.
    """

    def load_from_disk_or_web(filename, map_location):
        return fetch(filename, map_location, unsafe)

    CheckpointLoader.register_scheme(prefixes=('', *PREFIXES), loader=load_from_disk_or_web, force=True)
    os.environ.pop('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD' if not unsafe else 'TORCH_FORCE_WEIGHTS_ONLY_LOAD', None)
    os.environ['TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD' if unsafe else 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'


@dataclass(frozen=True)
class Mismatch:
    """How a checkpoint differs from a model.

    Attributes:
        missing (list[str]): keys of the model that the checkpoint lacks.
        unexpected (list[str]): keys of the checkpoint that the model lacks.
        shapes (dict): key -> (shape in the model, shape in the checkpoint).
        total (int): keys of the model.
    """

    missing: list[str]
    unexpected: list[str]
    shapes: dict[str, tuple[tuple, tuple]]
    total: int

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.shapes)

    def __str__(self) -> str:
        kinds = [
            ('missing in it', self.missing),
            ('unexpected in it', self.unexpected),
            ('of another shape', [f'{k} (model {m}, checkpoint {c})' for k, (m, c) in self.shapes.items()]),
        ]
        lines = [
            f'of the {self.total} entries of the model {len(self.missing)} are missing and {len(self.shapes)} '
            f'have another shape; {len(self.unexpected)} entries are unexpected'
        ]
        return '\n'.join(lines + [_listing(title, keys) for title, keys in kinds if keys])


def _listing(title: str, keys: list[str]) -> str:
    more = f', ... and {len(keys) - LISTED} more' if len(keys) > LISTED else ''
    return f'  {len(keys)} {title}: {", ".join(keys[:LISTED])}{more}'


def compare_state_dict(model: nn.Module, state_dict: Mapping[str, torch.Tensor]) -> Mismatch:
    """Compare a checkpoint's entries with a model's, by name and shape.

    BatchNorm's ``num_batches_tracked`` may lack (old files do); a ``module.`` prefix is taken off.
    """
    theirs = {re.sub(r'^module\.', '', key): tuple(value.shape) for key, value in state_dict.items() if hasattr(value, 'shape')}
    ours = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    missing = [key for key in ours if key not in theirs and not key.endswith('num_batches_tracked')]
    shapes = {key: (shape, theirs[key]) for key, shape in ours.items() if key in theirs and theirs[key] != shape}
    return Mismatch(missing, [key for key in theirs if key not in ours], shapes, len(ours))


def check_architecture(model: nn.Module, checkpoint: Mapping, path: str, allow_partial: bool = False) -> None:
    """Refuse a checkpoint of another architecture.

    Args:
        model (nn.Module): the model about to load it.
        checkpoint (dict): with a ``state_dict``, or itself one.
        path (str): for the message.
        allow_partial (bool): log the differences instead, for fine-tuning from another head or backbone.

    Raises:
        CheckpointError: counts and first names of missing, unexpected and differently shaped entries.
    """
    mismatch = compare_state_dict(model, checkpoint.get('state_dict', checkpoint))
    if not mismatch:
        return
    message = f'checkpoint {path} does not fit {type(model).__name__}: {mismatch}'
    if not allow_partial:
        raise CheckpointError(message)
    print_log(f'{message}\nLoaded as far as it fits.', logger='current')


def find_whole_checkpoint(work_dir: str, unsafe: bool = False) -> tuple[str, dict] | None:
    """Find the newest checkpoint of a run that reads whole.

    A run killed while it writes leaves a file cut short; that one is named and passed over.

    Returns:
        tuple[str, dict], optional: path and content; None in a work_dir without any checkpoint.

    Raises:
        CheckpointError: there are checkpoints, but none is whole.
    """
    damaged = []
    for path in sorted(Path(work_dir).glob('*_*.pth'), key=_age):
        if not re.fullmatch(r'(epoch|iter)_\d+', path.stem):
            continue
        try:
            return str(path), read_checkpoint(str(path), unsafe=unsafe)
        except CheckpointError as error:
            damaged.append(str(error))
            print_log(f'{error}; looking for an earlier one', logger='current')
    if damaged:
        raise CheckpointError(f'no whole checkpoint in {work_dir}: {"; ".join(damaged)}; start anew without --resume')
    return None


def _age(path: Path) -> tuple:
    """Newest first; a longer earlier run in the same work_dir must not win by its number."""
    return -path.stat().st_mtime_ns, -int(re.sub(r'\D', '', path.stem) or 0)

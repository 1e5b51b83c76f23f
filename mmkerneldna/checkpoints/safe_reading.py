"""Read a file of weights without running code that may be in it.

A pickle can run code. torch's ``weights_only=True`` refuses everything but tensors and plain containers, while mmengine
stores its message hub and numpy numbers next to the weights, and falls back to the unsafe mode when they are refused.
Here exactly these types are let through, with the ``argparse.Namespace`` of settings that many trainers store, and nothing
falls back.
"""

import argparse
import os
import pickle
import re
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from ..errors import CheckpointError


def read_checkpoint(path: str, map_location='cpu', unsafe: bool = False) -> dict:
    """Read a local checkpoint.

    Args:
        path (str): a file written by ``torch.save``.
        map_location: as for ``torch.load``.
        unsafe (bool): allow any pickle, which can run code. For files whose author you trust.

    Returns:
        dict: what the file holds.

    Raises:
        CheckpointError: no such file, cut short or damaged, or it holds objects other than weights.
    """
    path = os.path.expanduser(str(path))
    if not os.path.isfile(path):
        fault = 'is a folder, name a file in it' if os.path.isdir(path) else 'does not exist'
        raise CheckpointError(f'checkpoint {path} {fault}')
    try:
        with torch.serialization.safe_globals(_safe_globals()):
            held = torch.load(path, map_location=map_location, weights_only=not unsafe)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refusal(path, str(error))) from error
    except Exception as error:  # bytes that are no pickle make an unpickler raise anything
        raise CheckpointError(_damage(path, f'{type(error).__name__}: {error}')) from error
    if not isinstance(held, Mapping):
        raise CheckpointError(
            f'checkpoint {path} holds a {type(held).__name__}; expected a state dict, or a dict with one '
            "under 'state_dict' or 'model'"
        )
    return cast(dict, held)


def _damage(path: str, cause: str) -> str:
    return f'checkpoint {path} is cut short, damaged or no checkpoint at all ({cause.splitlines()[0]})'


def _refusal(path: str, reason: str) -> str:
    held = re.search(r'GLOBAL (\S+)', reason)
    if held is None:
        return _damage(path, re.sub(r'.*WeightsUnpickler error: ', '', reason, flags=re.DOTALL))
    return (
        f'checkpoint {path} holds {held.group(1)} besides weights, and unpickling that can run code; if you trust '
        'its author, allow it with --unsafe-checkpoint'
    )


def _history_method(owner: type, name: str):
    """Stands in for ``getattr`` while unpickling: mmengine stores the statistics methods of its ``HistoryBuffer``."""
    if owner is not HistoryBuffer or name.startswith('_'):
        raise pickle.UnpicklingError(f'Unsupported global: GLOBAL {owner}.{name}')
    return getattr(owner, name)


def _safe_globals() -> list:
    dtypes = {type(np.dtype(t)) for t in (bool, 'u1', 'i1', 'i2', 'i4', 'i8', 'f2', 'f4', 'f8')}
    core: Any = np._core  # type: ignore[attr-defined]  # private, so numpy's stubs leave it out
    return [
        argparse.Namespace,
        HistoryBuffer,
        (_history_method, 'builtins.getattr'),
        slice,
        np.ndarray,
        np.dtype,
        *dtypes,
        core.multiarray._reconstruct,
        core.multiarray.scalar,
    ]

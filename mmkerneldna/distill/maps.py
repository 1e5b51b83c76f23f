"""The maps of a detector or segmenter that a distillation compares, taken while the model computes what it computes anyway."""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy import heads_of, task_of
from .terms import DistillError


@contextmanager
def recorded(model: nn.Module, kinds: Collection[str]) -> Iterator[dict[str, list[Any]]]:
    """Keep what ``model`` returns as ``'levels'`` and ``'logits'`` inside the block; each list holds the last result.

    The methods are wrapped inside the block only, so that a copy of the model never carries a wrapper of another's.
    """
    with ExitStack() as stack:
        yield {kind: stack.enter_context(_kept_results(*_place(model, kind))) for kind in kinds}


def maps_of(results: dict[str, list[Any]], whose: str) -> dict[str, tuple[Tensor, ...]]:
    """The maps in what :func:`recorded` kept.

    Raises:
        DistillError: they are no maps (N, C, H, W).
    """
    return {kind: _maps(kept, f'the {kind} of the {whose}') for kind, kept in results.items()}


def logits_head(model: nn.Module) -> nn.Module:
    """The head whose ``forward`` returns a segmenter's logits, the last one of a cascade.

    Raises:
        DistillError: a model of another task.
    """
    if task_of(model) != 'segmentation':
        raise DistillError(
            f"{type(model).__name__} has no logits map: distil a detector on its levels (PKD, MSE), or give CWD on='levels'"
        )
    return heads_of(model).dense[-1]


def _place(model: nn.Module, kind: str) -> tuple[nn.Module, str]:
    return (model, 'extract_feat') if kind == 'levels' else (logits_head(model), 'forward')


@contextmanager
def _kept_results(owner: nn.Module, name: str) -> Iterator[list[Any]]:
    own, method = vars(owner).get(name), getattr(owner, name)
    kept: list[Any] = []

    def keep(*args, **kwargs):
        kept[:] = [method(*args, **kwargs)]
        return kept[0]

    setattr(owner, name, keep)
    try:
        yield kept
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


def _maps(kept: list[Any], what: str) -> tuple[Tensor, ...]:
    held = kept[0] if kept else None
    maps = tuple(held) if isinstance(held, (list, tuple)) else (held,)
    for one in maps:
        if not torch.is_tensor(one) or one.dim() != 4:
            found = f'a tensor of {one.dim()} dimensions' if torch.is_tensor(one) else type(one).__name__
            raise DistillError(f'{what} must be maps (N, C, H, W), found {found}; choose another loss or other maps by on=')
    return maps

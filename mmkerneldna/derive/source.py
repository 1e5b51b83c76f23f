"""Read dense weights from a state dict, a module or a file, and give them the names of the target."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ..checkpoints.mobilenet_names import mobilenet_prefixes
from ..checkpoints.reading import plain_state_dict
from ..checkpoints.remote import fetch
from ..errors import KernelDNAError

Source = str | os.PathLike | nn.Module | Mapping[str, Any]
LISTED = 4


class DeriveError(KernelDNAError, ValueError):
    """Dense weights that can't become the target's, or images and settings that can't be used."""


def read_source(source: Source) -> dict[str, Tensor]:
    """The flat state dict in ``source``, without what trainers wrap around it.

    Args:
        source: a module, a state dict (also one under ``state_dict`` or ``model``), or the name of a file or of what
            can be fetched (``torchvision://resnet50``, ``open-mmlab://...``, ``https://...``).

    Raises:
        DeriveError: it is a KernelDNA net's.
        CheckpointError: no such file, it can't be fetched, has no weights in it, or values that are not finite.
    """
    held: Mapping[str, Any]
    if isinstance(source, nn.Module):
        held, name = source.state_dict(), type(source).__name__
    elif isinstance(source, Mapping):
        held, name = source, 'the source'
    else:
        name = str(source)
        held = fetch(name)
    state = plain_state_dict(held, name)
    if is_shared(state):
        raise DeriveError(
            f'{name} holds a KernelDNA net already (it has filter_scale entries): load it as it is, there is nothing to derive'
        )
    return state


def is_shared(state: Iterable[str]) -> bool:
    """Whether these are the entries of a KernelDNA net: some child has its scales in there."""
    return any(key.endswith('.filter_scale') for key in state)


def listed(names: Iterable[str]) -> str:
    """The first few of ``names``, for a message."""
    names = list(names)
    return ', '.join(names[:LISTED]) + (f', ... and {len(names) - LISTED} more' if len(names) > LISTED else '') or 'nothing'


def rename(state: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """Bring the entries of ``state`` to the names in ``wanted``: the prefix that fits best is taken off or put on.

    A backbone takes its part of a whole detector. torchvision's and mmseg's names of MobileNetV2 are understood.
    """
    wanted = set(wanted)
    if any('.expand_conv.' in key for key in wanted):
        state = _mobilenet(state)
    heads = {'.'.join(key.split('.')[:depth]) + '.' for key in state for depth in (1, 2) if key.count('.') > depth}
    added = {'.'.join(key.split('.')[:1]) + '.' for key in wanted if key.count('.') > 1}
    fits = Counter({('', ''): sum(key in wanted for key in state)})
    for prefix in heads:
        fits[prefix, ''] = sum(key[len(prefix) :] in wanted for key in state if key.startswith(prefix))
    for prefix in added:
        fits['', prefix] = sum(prefix + key in wanted for key in state)
    off, on = max(sorted(fits), key=fits.__getitem__)
    return {on + key[len(off) :]: value for key, value in state.items() if key.startswith(off)}


def _mobilenet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefixes = mobilenet_prefixes()
    renamed = {}
    for key, value in state.items():
        owner, _, entry = key.rpartition('.')
        renamed[f'{prefixes[owner]}.{entry}' if owner in prefixes else _mmseg_block(key)] = value
    return renamed


def _mmseg_block(key: str) -> str:
    """mmseg numbers the convs of a block (``layer2.0.conv.1.bn``), mmdet names them."""
    found = re.match(r'(.*?layer(\d)\.\d+)\.conv\.(\d)\.(.*)', key)
    if not found:
        return key
    block, stage, position, rest = found.groups()
    names: list[str] = ['expand_conv', 'depthwise_conv', 'linear_conv'][int(stage == '1') :]
    return f'{block}.{names[int(position)]}.{rest}'

"""What files in the wild wrap around a state dict, taken off in one place.

Trainers nest the weights, prefix their names, keep a second, averaged set beside them or store half precision. Whatever takes
a checkpoint of somebody else's net reads it through :func:`plain_state_dict` or :func:`backbone_state_dict`.
"""

import functools
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor

from ..errors import CheckpointError
from .mobilenet_names import mobilenet_prefixes

#: Names under which checkpoints keep their weights, the first that is there counts. Where mmengine's ``EMAHook`` ran,
#: ``state_dict`` holds the averaged weights already, and ``ema_state_dict`` those of the last step.
WRAPPERS = ('state_dict', 'model', 'ema_state_dict', 'state_dict_ema', 'model_ema')
_PREFIXES = re.compile(r'^(?:module\.|_orig_mod\.)+')  # data parallel, torch.compile
_EMA = 'ema_'
_BACKBONE = 'backbone.'
_CLASSIFIERS = ('fc.', 'classifier.')
_LISTED = 5


def plain_state_dict(checkpoint: Mapping[str, Any], source: str = 'the checkpoint') -> dict[str, Tensor]:
    """The flat state dict in a checkpoint, under the names of the net that was trained.

    Nesting (:data:`WRAPPERS`), the prefixes ``module.`` and ``_orig_mod.`` and averaged copies are taken off; half precision
    becomes fp32. The tensors are those of the checkpoint wherever the precision allows it.

    Args:
        checkpoint (Mapping): what a file holds, or a state dict itself.
        source (str): names it in messages.

    Returns:
        dict: name -> tensor, in the checkpoint's order.

    Raises:
        CheckpointError: there are no tensors in it, or weights that are NaN or infinite.
    """
    state = _tensors(_unwrap(checkpoint))
    if not state:
        raise CheckpointError(
            f'{source} holds no weights, only {some(checkpoint)}; expected a state dict, or a dict with one '
            f'under {", ".join(map(repr, WRAPPERS))}'
        )
    state = _in_fp32(_without_averages({_PREFIXES.sub('', key): value for key, value in state.items()}), source)
    check_finite(state, source)
    return state


def backbone_state_dict(checkpoint: Mapping[str, Any], source: str = 'the checkpoint') -> dict[str, Tensor]:
    """The backbone's part of a checkpoint of a backbone, a classifier, a detector or a segmenter, under mmdet's names.

    Entries under ``backbone.`` count, without this prefix, where there are any. Otherwise all do but the classifier of
    torchvision's nets, whose ResNets have mmdet's names; those of its MobileNetV2 are translated.

    Args:
        checkpoint, source: as for :func:`plain_state_dict`.

    Returns:
        dict: name -> tensor, as ``ResNet`` or ``MobileNetV2`` of mmdet have it.

    Raises:
        CheckpointError: as :func:`plain_state_dict`.
    """
    backbone, _ = split_backbone(plain_state_dict(checkpoint, source))
    return _mmdet_names({key: value for key, value in backbone.items() if not key.startswith(_CLASSIFIERS)})


def split_backbone(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The backbone's entries, without their prefix ``backbone.``, and all others; where none has it, all are the backbone's."""
    backbone = {key[len(_BACKBONE) :]: value for key, value in state.items() if key.startswith(_BACKBONE)}
    if not backbone:
        return dict(state), {}
    return backbone, {key: value for key, value in state.items() if not key.startswith(_BACKBONE)}


def reads_released(convert: Callable[..., dict[str, Tensor]]) -> Callable[..., dict[str, Tensor]]:
    """Let a converter of a backbone's flat state dict take whole checkpoints, of detectors and segmenters too.

    Of a whole model the backbone is converted and keeps its prefix ``backbone.``; the neck's and heads' entries go over as they
    are: mmdet 3 and mmseg 1 name them as the versions before did. Of a classifier (``head.``) only the backbone is left,
    without prefix.
    """

    @functools.wraps(convert)
    def convert_any(state_dict: Mapping[str, Any], *args, **kwargs) -> dict[str, Tensor]:
        backbone, others = split_backbone(plain_state_dict(state_dict))
        converted = convert(backbone, *args, **kwargs)
        carried = {key: value for key, value in others.items() if not key.startswith('head.')}
        return {**{_BACKBONE + key: value for key, value in converted.items()}, **carried} if carried else converted

    return convert_any


def check_finite(state: Mapping[str, Any], source: str, parameters: Collection[str] = ()) -> None:
    """Refuse the weights of a training that diverged.

    Args:
        state (Mapping): name -> tensor; anything else in it is passed over.
        source (str): names it in messages.
        parameters (collection[str]): entries known to be learned. Any other that is 0 or -inf throughout is a mask of
            attention, which models keep as a buffer.

    Raises:
        CheckpointError: entries with NaN or infinite numbers.
    """
    broken = [key for key, value in _tensors(state).items() if _diverged(value, key in parameters)]
    if broken:
        raise CheckpointError(
            f'{source} is of a training that diverged: {len(broken)} of {len(state)} entries hold NaN or '
            f'infinite numbers ({some(broken)}); take an earlier checkpoint'
        )


def _diverged(value: Tensor, learned: bool) -> bool:
    if bool(value.isfinite().all()):
        return False
    return learned or not bool(((value == 0) | (value == -torch.inf)).all())


def _unwrap(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = next((checkpoint[name] for name in WRAPPERS if isinstance(checkpoint.get(name), Mapping)), None)
    return checkpoint if inner is None else _unwrap(inner)


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    # 'steps' counts the updates of an averaged model
    return {key: value for key, value in state.items() if isinstance(value, Tensor) and key != 'steps'}


def _without_averages(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a weight and its averaged copy ``ema_*`` the former; a copy that stands alone gets the plain name.

    mmcv 1's ``EMAHook`` kept copies as buffers, with ``_`` for every dot, and swapped the two before it saved: the plain names
    hold the averages.
    """
    plain = {key for key in state if not key.startswith(_EMA)}
    covered = plain | {key.replace('.', '_') for key in plain}
    kept = {key: value for key, value in state.items() if key in plain or key[len(_EMA) :] not in covered}
    return {key.removeprefix(_EMA): value for key, value in kept.items()}


def _in_fp32(state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    half = [key for key, value in state.items() if value.dtype in (torch.float16, torch.bfloat16)]
    if half:
        print_log(f'{source}: {len(half)} of {len(state)} entries are in half precision, read as fp32', logger='current')
    return {**state, **{key: state[key].float() for key in half}}


def _mmdet_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    if 'features.0.0.weight' not in state:
        return state
    prefixes = mobilenet_prefixes()
    split = {key: key.rpartition('.') for key in state}
    return {f'{prefixes.get(layer, layer)}.{name}': state[key] for key, (layer, _, name) in split.items()}


def some(names: Iterable[str]) -> str:
    """The first few names, for a message."""
    names = list(map(str, names))
    return ', '.join(names[:_LISTED]) + (', ...' if len(names) > _LISTED else '') if names else 'nothing'

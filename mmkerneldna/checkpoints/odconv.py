"""Checkpoints of the authors' ODConv code, renamed to our nets.

The released nets (OSVAI/ODConv, ``models/od_resnet.py`` and ``models/od_mobilenetv2.py``) become those of

    dict(type='DynamicConvs', module=dict(type='ResNet', depth=18), conv=dict(type='ODConv2d', num_experts=4))

and of ``MobileNetV2`` of mmdet (widths 0.5, 0.75 and 1.0 have the same names). ``num_experts`` is the ``kernel_num``
they were trained with, and shows in the shape of the ``weight`` of any dynamic layer.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from .mobilenet_names import mobilenet_prefixes
from .reading import reads_released, some


@reads_released
def convert_odconv(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Turn a checkpoint of the authors' ODConv code into the state dict of our backbone; the net is read off the keys.

    Args:
        state_dict: a state dict of an ``od_resnet*`` or ``od_mobilenetv2_*``, or of the authors' detectors with them, as
            :func:`.reading.reads_released` reads it. The classifier is dropped.

    Returns:
        A state dict that loads strictly into the net above. Their temperature is no part of it: it is 1 after training.

    Raises:
        ValueError: keys of neither net, or a net without ODConv layers.
    """
    rename = _renaming(state_dict)
    if not any('.attention.' in key for key in state_dict):
        raise ValueError(
            'not a checkpoint of ODConv: it has no attention layers; a static checkpoint loads into the swapped net as it is'
        )
    converted, foreign = {}, []
    for key, value in state_dict.items():
        prefix = next((p for p in rename if key.startswith(p + '.')), None)
        if prefix is None:
            foreign.append(key)
        elif rename[prefix]:
            converted[rename[prefix] + key[len(prefix) :].replace('.attention.bn.', '.attention.norm.')] = value
    if foreign:
        raise ValueError(f'{len(foreign)} keys belong to no layer of the released nets: {some(foreign)}')
    return converted


def _renaming(keys: Iterable[str]) -> dict[str, str]:
    """Their prefix -> ours, the classifier -> ''."""
    heads = {key.split('.')[0] for key in keys}
    if {'conv1', 'bn1', 'layer1', 'layer2', 'layer3', 'layer4'} <= heads:
        return {**{name: name for name in ('conv1', 'bn1', 'layer1', 'layer2', 'layer3', 'layer4')}, 'fc': ''}
    if 'features' in heads:
        return {**mobilenet_prefixes(), 'classifier': ''}
    raise ValueError(
        'not a checkpoint of a released ODConv net: expected the layers of od_resnet (conv1, layer1, ...) '
        f'or od_mobilenetv2 (features), got {some(sorted(heads))}'
    )

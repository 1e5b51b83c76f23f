"""Checkpoints of the authors' DCD code, renamed to our nets.

The released nets (liyunsheng13/dcd, ``models/imagenet/resnet_dcd.py`` and ``mobilenetv2_dcd.py``) become those of

    dict(type='DynamicConvs', module=dict(type='ResNet', depth=50), conv=dict(type='DCDConv2d'))

(``pool_size=2`` with the basic blocks of ResNet-18 and 34) and of mmdet's ``MobileNetV2``. A layer there holds its static
convolution under ``conv``, and its norms behind Q and Phi as ``bn1`` and ``bn2``.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from .mobilenet_names import BLOCKS
from .reading import reads_released, some

#: inside a layer, their name -> ours
_INSIDE = {
    'conv.weight': 'weight', 'q.weight': 'q.weight', 'conv_q.weight': 'q.weight', 'p.weight': 'p.weight',
    'conv_p.weight': 'p.weight', 'fc.0.weight': 'fusion.fc.weight', 'fc.1.fc.0.weight': 'fusion.self_gate.weight',
    'fc_phi.weight': 'fusion.phi_fc.weight', 'fc_scale.weight': 'fusion.scale_fc.weight',
    **{f'{theirs}.{name}': f'{ours}.{name}' for theirs, ours in (('bn1', 'norm_q'), ('bn2', 'norm_phi'))
       for name in ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')},
}  # yapf: disable
_STEM = {'features.0.0': 'conv1.conv', 'features.0.1': 'conv1.bn', 'conv.0': 'conv2.conv', 'conv.1': 'conv2.bn'}


@reads_released
def convert_dcd(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Turn a checkpoint of the authors' DCD code into the state dict of our backbone; the net is read off the keys.

    Args:
        state_dict: a state dict of a ``resnet*_dcd`` or of ``mobilenetv2_dcd``, or of a detector with one, as
            :func:`.reading.reads_released` reads it. The classifier is dropped.

    Returns:
        A state dict that loads strictly into the nets above.

    Raises:
        ValueError: keys of neither net, or a net without dynamic layers.
    """
    layers = {key[: -len('.fc_phi.weight')] for key in state_dict if key.endswith('.fc_phi.weight')}
    layers = {layer for layer in layers if not layer.startswith('classifier')}
    if not layers:
        raise ValueError(
            'not a checkpoint of DCD: no layer has an fc_phi; a static checkpoint loads into the swapped net as it is'
        )
    places, converted, foreign = _places(state_dict), {}, []
    for key, value in state_dict.items():
        if key.startswith(('classifier.', 'fc.')):
            continue
        place = next((p for p in _parents(key) if p in places), None)
        inner = key[len(place) + 1 :] if place else ''
        name = _INSIDE.get(inner) if place in layers else inner
        if place is None or not name:
            foreign.append(key)
        else:
            converted[f'{places[place]}.{name}'] = value
    if foreign:
        raise ValueError(f'{len(foreign)} keys belong to no layer of the released nets: {some(foreign)}')
    return converted


def _parents(key: str) -> Iterable[str]:
    """The modules around an entry, from the inside out."""
    while '.' in key:
        key = key.rpartition('.')[0]
        yield key


def _places(keys: Iterable[str]) -> dict[str, str]:
    """Their convolution or norm -> ours."""
    if 'features.0.0.weight' in keys:
        return _mobilenet_places()
    resnet = re.compile(r'(conv1|bn1|layer\d\.\d+\.(?:conv\d|bn\d|downsample\.\d))\.')
    places = {found[1]: found[1] for found in map(resnet.match, keys) if found}
    if not {'conv1', 'bn1', 'layer4.0.conv1'} <= set(places):
        raise ValueError(
            'not a checkpoint of a released DCD net: expected the layers of resnet_dcd (conv1, layer1, ...) or '
            f'mobilenetv2_dcd (features), got {some(sorted({key.split(".")[0] for key in keys}))}'
        )
    return places


def _mobilenet_places() -> dict[str, str]:
    """Blocks there are flat sequences of convolution, norm and activation."""
    places = dict(_STEM)
    blocks = [f'layer{stage}.{block}' for stage, count in enumerate(BLOCKS, start=1) for block in range(count)]
    for position, ours in enumerate(blocks, start=1):
        names = ['expand_conv', 'depthwise_conv', 'linear_conv']
        for i, name in enumerate(names if position > 1 else names[1:]):
            places[f'features.{position}.conv.{3 * i}'] = f'{ours}.{name}.conv'
            places[f'features.{position}.conv.{3 * i + 1}'] = f'{ours}.{name}.bn'
    return places

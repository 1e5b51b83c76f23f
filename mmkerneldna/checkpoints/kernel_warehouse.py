"""Checkpoints of the authors' KernelWarehouse code, renamed to our backbones.

The released nets (OSVAI/KernelWarehouse, ``models/kw_resnet.py`` and ``models/kw_mobilenetv2.py``) are torchvision's, with
an ``attention`` in the place of each kernel and all warehouses in ``warehouse_manager.weights``. Here a warehouse belongs to
the last layer that draws on it.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from mmdet.models.backbones import MobileNetV2, ResNet
from mmengine.logging import print_log
from torch import Tensor, nn

from ..layers.kernel_warehouse import KWConv2d
from ..layers.kernel_warehouse_plan import PRESETS, group_convs, plan_warehouse
from ..layers.match import match_convs
from .mobilenet_names import mobilenet_prefixes
from .reading import plain_state_dict, reads_released, split_backbone

_WAREHOUSE = re.compile(r'warehouse_manager\.weights\.(\d+)')
_CLASSIFIER = ('fc.', 'classifier.')


class Setting(NamedTuple):
    """What a released checkpoint was trained with.

    Attributes:
        arch: key of ``PRESETS``.
        scale: ``'1x'``, ``'4x'``, ``'1/2x'``, ...
        width: MobileNetV2's ``widen_factor``; 1 for ResNets.
        conv: config of the layers, for ``DynamicConvs``.
    """

    arch: str
    scale: str
    width: float
    conv: dict


@reads_released
def convert_kernelwarehouse(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Turn a checkpoint of the authors' code into the state dict of our backbone.

    Args:
        state_dict (Mapping): of ``kw_resnet18``, ``kw_resnet50`` or ``kw_mobilenetv2``, or of the authors' detectors with
            them, as :func:`.reading.reads_released` reads it. The classifier is dropped.

    Returns:
        dict: loads strictly into ``DynamicConvs`` over ``ResNet(18)`` or ``ResNet(50)`` of mmdet or mmseg, or mmdet's
        ``MobileNetV2``, with :func:`kernelwarehouse_setting`'s ``conv``. (mmseg's MobileNetV2 has other names and no last
        1x1 convolution.)

    Raises:
        ValueError: not such a checkpoint; the message names keys that are missing or don't belong.
    """
    setting = kernelwarehouse_setting(state_dict)
    net, convs = _backbone(setting.arch, setting.width)
    options = {k: v for k, v in setting.conv.items() if k != 'type'}
    with torch.device('meta'):
        layers = KWConv2d.build_swapped(convs, **options)
    owners = [paths[-1] for paths in group_convs(convs, options.get('sharing', 'stage')).values()]
    converted = _rename(state_dict, setting.arch, owners)
    _check(converted, _expected_keys(net, layers))
    print_log(f'KernelWarehouse {setting.scale} {setting.arch}, {len(owners)} warehouses', logger='current')
    return converted


def kernelwarehouse_setting(state_dict: Mapping[str, Any]) -> Setting:
    """Recognise architecture and budget of a released checkpoint by its keys and the shapes of its warehouses.

    Raises:
        ValueError: no published setting has these warehouses.
    """
    state, _ = split_backbone(plain_state_dict(state_dict))
    shapes = [tuple(state[key].shape[:3]) for key in sorted(filter(_WAREHOUSE.fullmatch, state), key=_warehouse_index)]
    if not shapes:
        raise ValueError("no 'warehouse_manager.weights.*' in the checkpoint: it is not one of KernelWarehouse")
    arch, width = _arch(state)
    _, convs = _backbone(arch, width)
    for scale, options in PRESETS[arch].items():
        if _warehouse_shapes(convs, **options) == shapes:
            return Setting(arch, scale, width, dict(type='KWConv2d', **options))
    raise ValueError(
        f'{arch} with warehouses of {shapes} is none of the published settings '
        f"({', '.join(PRESETS[arch])}): ResNets and MobileNetV2s of other depths or cells can't be converted"
    )


def _arch(state: Mapping[str, Tensor]) -> tuple[str, float]:
    if 'features.0.1.weight' in state:
        return 'mobilenet_v2', len(state['features.0.1.weight']) / 32
    return ('resnet50' if 'layer1.0.bn3.weight' in state else 'resnet18'), 1.0


def _backbone(arch: str, width: float) -> tuple[nn.Module, dict[str, nn.Conv2d]]:
    with torch.device('meta'):
        net = MobileNetV2(widen_factor=width) if arch == 'mobilenet_v2' else ResNet(int(arch[len('resnet') :]))
    return net, {path: net.get_submodule(path) for path in match_convs(net, KWConv2d, None, ())}


def _warehouse_shapes(convs, budget=1, cell_in_ratio=1, cell_out_ratio=1, sharing='stage', **_) -> list | None:
    shapes = []
    for paths in group_convs(convs, sharing).values():
        try:
            plan = plan_warehouse(
                {path: tuple(convs[path].weight.shape) for path in paths}, budget, cell_in_ratio, cell_out_ratio
            )
        except ValueError:  # a preset that this width does not allow is not the one
            return None
        shapes.append((plan.num_cells, *plan.cell_shape))
    return shapes


def _rename(state: Mapping[str, Tensor], arch: str, owners: list[str]) -> dict[str, Tensor]:
    prefixes = mobilenet_prefixes() if arch == 'mobilenet_v2' else {}
    converted = {}
    for key, value in state.items():
        if key.startswith(_CLASSIFIER):
            continue
        if _WAREHOUSE.fullmatch(key):
            converted[f'{owners[_warehouse_index(key)]}.warehouse.cells'] = value.reshape(value.shape[:3])
            continue
        prefix = next((p for p in prefixes if key.startswith(p + '.')), '')
        renamed = prefixes[prefix] + key[len(prefix) :] if prefix else key
        converted[renamed.replace('.attention.norm1.', '.attention.norm.')] = value
    return converted


def _expected_keys(net: nn.Module, layers: Mapping[str, nn.Module]) -> set:
    kept = {key for key in net.state_dict() if key.rpartition('.')[0] not in layers}
    return kept | {f'{path}.{key}' for path, layer in layers.items() for key in layer.state_dict()}


def _check(converted: Mapping[str, Tensor], expected: set) -> None:
    missing, foreign = sorted(expected - set(converted)), sorted(set(converted) - expected)
    if missing or foreign:
        raise ValueError(
            f'not a released KernelWarehouse checkpoint: {len(missing)} keys are missing ({missing[:3]} ...), '
            f'{len(foreign)} do not belong to it ({foreign[:3]} ...)'
        )


def _warehouse_index(key: str) -> int:
    return int(key.rpartition('.')[2])

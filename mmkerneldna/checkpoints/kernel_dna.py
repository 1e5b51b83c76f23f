"""Checkpoints of the authors' KernelDNA code, renamed to our backbones.

The released nets (haiduo/KernelDNA, ``models/KDNA_*.py``) are torchvision's with whole stages replaced by modules that
hold the kernels of all their blocks. Adapters of a stage are stacked tensors there; here each child owns its slice.

A renaming table maps an official prefix to ours; a slice table maps a stacked tensor to the children it belongs to.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .reading import reads_released, some

GATE = {'se.fc1': 'gate.fc1', 'se.bn': 'gate.norm', 'se.fc2': 'gate.fc2'}


@dataclass
class Layout:
    """How one released net maps to ours.

    Attributes:
        rename (dict): official prefix -> our prefix.
        slices (dict): official stacked tensor -> [our tensor], in the order of its first axis.
        dropped (tuple): official prefixes that a backbone has no place for (the classifier).
    """

    rename: dict[str, str] = field(default_factory=dict)
    slices: dict[str, list[str]] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()

    def gate(self, official: str, child: str) -> None:
        """Register the gate at ``official`` as that of the child conv at ``child``."""
        for theirs, ours in GATE.items():
            self.rename[f'{official}.{theirs}'] = f'{child}.{ours}'


def _resnet18() -> Layout:
    layout = Layout(dropped=('fc',))
    layout.rename = {name: name for name in ('conv1', 'bn1', 'layer1', 'layer2')}
    for stage in ('layer3', 'layer4'):
        children = [f'{stage}.0.conv2', f'{stage}.1.conv1', f'{stage}.2.conv1']
        blocks = dict(
            conv1='0.conv1', bn1='0.bn1', downsample='0.downsample', conv2='1.conv2', bn2='1.bn2', conv3='2.conv2', bn3='2.bn2'
        )
        blocks.update({'bns.0': '0.bn2', 'bns.1': '1.bn1', 'bns.2': '2.bn1'})
        layout.rename.update({f'{stage}.{theirs}': f'{stage}.{ours}' for theirs, ours in blocks.items()})
        _stack(layout, stage, 'static_filter_attn', 'static_spatial_attn', children)
        for i, child in enumerate(children):
            layout.gate(f'{stage}.se.{i}', child)
    return layout


def _resnet50() -> Layout:
    layout = Layout(dropped=('fc',))
    layout.rename = {name: name for name in ('conv1', 'bn1', 'layer1', 'layer2')}
    stages = (
        ('layer3', 'kids', ['parents.0', 'parents.1', 'parents.2'], 'static_filter_attn'),
        ('layer4', 'blocks', ['last_block'], 'static_filter_attn2'),
    )
    for stage, kids, parents, filters in stages:
        _own_bottleneck(layout, f'{stage}.block0', f'{stage}.0')
        for i, parent in enumerate(parents):
            _sharing_bottleneck(layout, f'{stage}.{kids}.{i}', f'{stage}.{2 * i + 1}')
            _own_bottleneck(layout, f'{stage}.{parent}', f'{stage}.{2 * i + 2}')
        children = [f'{stage}.{2 * i + 1}.conv2' for i in range(len(parents))]
        _stack(layout, stage, filters, 'static_spatial_attn', children)
    return layout


def _own_bottleneck(layout: Layout, theirs: str, ours: str) -> None:
    for name in ('conv1', 'bn1', 'conv2', 'bn2', 'conv3', 'bn3'):
        layout.rename[f'{theirs}.layers.{name}'] = f'{ours}.{name}'
    layout.rename[f'{theirs}.downsample.conv'] = f'{ours}.downsample.0'
    layout.rename[f'{theirs}.downsample.bn'] = f'{ours}.downsample.1'


def _sharing_bottleneck(layout: Layout, theirs: str, ours: str) -> None:
    for half, names in (('half1', ('conv1', 'bn1')), ('half2', ('bn2', 'conv3', 'bn3'))):
        for name in names:
            layout.rename[f'{theirs}.{half}.{name}'] = f'{ours}.{name}'
    layout.gate(f'{theirs}.half1.se', f'{ours}.conv2')


def _stack(layout: Layout, stage: str, filters: str, spatial: str, children: list[str]) -> None:
    layout.slices[f'{stage}.{filters}'] = [f'{child}.filter_scale' for child in children]
    layout.slices[f'{stage}.{spatial}'] = [f'{child}.spatial_scale' for child in children]


# Official position of a shared stage, the stage and its number of children.
_MOBILE_STAGES = ((6, 'layer3', 1), (10, 'layer4', 2), (13, 'layer5', 1), (16, 'layer6', 1))
_MOBILE_CONVS = (('pw1', 'bn1', 'expand_conv'), ('dw', 'bn2', 'depthwise_conv'), ('pw2', 'bn3', 'linear_conv'))


def _mobilenet_v2() -> Layout:
    layout = Layout(dropped=('classifier',))
    _conv_bn(layout, 'features.0.0', 'features.0.1', 'conv1')
    _conv_bn(layout, 'features.1.conv.0.0', 'features.1.conv.0.1', 'layer1.0.depthwise_conv')
    _conv_bn(layout, 'features.1.conv.1', 'features.1.conv.2', 'layer1.0.linear_conv')
    for position, block in ((2, 'layer2.0'), (3, 'layer2.1'), (17, 'layer7.0')):
        theirs = f'features.{position}.conv'
        _conv_bn(layout, f'{theirs}.0.0', f'{theirs}.0.1', f'{block}.expand_conv')
        _conv_bn(layout, f'{theirs}.1.0', f'{theirs}.1.1', f'{block}.depthwise_conv')
        _conv_bn(layout, f'{theirs}.2', f'{theirs}.3', f'{block}.linear_conv')
    for position, stage, children in _MOBILE_STAGES:
        _mobile_stage(layout, f'features.{position}', stage, children)
    _conv_bn(layout, 'features.18.0', 'features.18.1', 'conv2')
    return layout


def _mobile_stage(layout: Layout, theirs: str, stage: str, children: int) -> None:
    for name, number in (('transition', 0), ('last_block', children + 1)):
        for conv, bn, ours in _MOBILE_CONVS:
            _conv_bn(layout, f'{theirs}.{name}.layers.{conv}', f'{theirs}.{name}.layers.{bn}', f'{stage}.{number}.{ours}')
    for i in range(children):
        kid, block = f'{theirs}.blocks.{i}', f'{stage}.{i + 1}'
        layout.rename[f'{kid}.dwconv'] = f'{block}.depthwise_conv.conv'
        for bn, ours in (('bn1', 'expand_conv'), ('bn2', 'depthwise_conv'), ('bn3', 'linear_conv')):
            layout.rename[f'{kid}.{bn}'] = f'{block}.{ours}.bn'
        layout.gate(f'{kid}.se1', f'{block}.expand_conv.conv')
        layout.gate(f'{kid}.se3', f'{block}.linear_conv.conv')
    for stacked, ours in (('static_filter_attn1', 'expand_conv'), ('static_filter_attn3', 'linear_conv')):
        layout.slices[f'{theirs}.{stacked}'] = [f'{stage}.{i + 1}.{ours}.conv.filter_scale' for i in range(children)]


def _conv_bn(layout: Layout, conv: str, bn: str, ours: str) -> None:
    layout.rename[conv] = f'{ours}.conv'
    layout.rename[bn] = f'{ours}.bn'


# Names do not depend on the width.
LAYOUTS: dict[str, Callable[[], Layout]] = {
    'resnet18': _resnet18,
    'resnet50': _resnet50,
    'mobilenet_v2': _mobilenet_v2,
    'mobilenet_v2_0.5': _mobilenet_v2,
}


@reads_released
def convert_official(state_dict: Mapping[str, Any], arch: str) -> dict[str, Tensor]:
    """Turn a checkpoint of the authors' code into the state dict of our backbone.

    Args:
        state_dict (Mapping): a state dict of ``models/KDNA_ResNet18.py``, ``KDNA_ResNet50.py`` or
            ``KDNA_MobileNetV2.py`` of haiduo/KernelDNA, as :func:`.reading.reads_released` reads it. The classifier is dropped.
        arch (str): ``'resnet18'``, ``'resnet50'``, ``'mobilenet_v2'`` or ``'mobilenet_v2_0.5'``.

    Returns:
        dict: loads strictly into ``KDNAResNet(18)``, ``KDNAResNet(50)``, ``KDNAMobileNetV2()`` or
        ``KDNAMobileNetV2(0.5)``.

    Raises:
        ValueError: an unknown ``arch``, keys that do not belong to it, or keys that are missing.
    """
    if arch not in LAYOUTS:
        raise ValueError(f'arch={arch!r} must be one of {", ".join(map(repr, LAYOUTS))}')
    layout, converted, foreign = LAYOUTS[arch](), {}, []
    used: set[str] = set()
    for key, value in state_dict.items():
        ours = _translate(layout, key, value, used)
        if ours is None:
            foreign.append(key)
        else:
            converted.update(ours)
    # Only the first block of a stage has a downsample branch.
    missing = [name for name in [*layout.rename, *layout.slices] if name not in used and 'downsample' not in name]
    if foreign or missing:
        raise ValueError(
            f'not a checkpoint of the released {arch}: {len(foreign)} keys do not belong to it '
            f'({some(foreign)}), {len(missing)} layers are missing ({some(missing)})'
        )
    return converted


def _translate(layout: Layout, key: str, value: Tensor, used: set):
    if key.split('.')[0] in layout.dropped:
        return {}
    if key in layout.slices:
        used.add(key)
        if len(value) != len(layout.slices[key]):
            raise ValueError(f'{key} stacks {len(value)} children, the released net has {len(layout.slices[key])}')
        return {ours: value[i].clone() for i, ours in enumerate(layout.slices[key])}
    prefix = key
    while prefix and prefix not in layout.rename:
        prefix = prefix.rpartition('.')[0]
    if not prefix:
        return None
    used.add(prefix)
    return {layout.rename[prefix] + key[len(prefix) :]: value}

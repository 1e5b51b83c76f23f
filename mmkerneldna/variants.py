"""Every variant of a convolution by name: the one table behind ``--variant NAME``, leaf configs and ``conv='NAME'``.

    python tools/train.py mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py --variant odconv4x
    backbone=dict(type='DynamicConvs', conv='odconv4x', module=dict(type='ResNet', depth=18, ...))

A variant is a layer and its settings. What else belongs to it stands with the layer: which convolutions its paper
replaced (``paper_patterns``), the temperature it is trained with (``temperature_schedule``), its loss.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import UsageError

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        summary (str): what it is, for people.
        conv (dict, optional): config of the layer that takes the place of a convolution; None for ``static`` and
            ``kdna``, which replace none.
        nets (dict): options that differ in one net, by ``Class-depth`` or ``Class``; ``include`` are patterns of the
            convolutions to take there.
    """

    summary: str
    conv: Options | None = None
    nets: Mapping[str, Options] = field(default_factory=dict)

    def settings(self, nets: Sequence[str]) -> dict[str, Any]:
        """Config of the layer, with ``include`` where the table states patterns, for a net of these names.

        Args:
            nets: names of the net, the most specific first; the first one in the table counts.
        """
        special = next((self.nets[net] for net in nets if net in self.nets), {})
        return {**(self.conv or {}), **special}


# MobileNetV2 has no FDConv in the paper; here its 1x1 convs are swapped (mmdet's names, then mmseg's).
_POINTWISE = [r're:layer\d\.\d+\.(expand_conv|linear_conv)\.conv|layer[2-7]\.\d+\.conv\.[02]\.conv']

VARIANTS: dict[str, Variant] = {
    'static': Variant('the net as it is'),
    'kdna': Variant('KernelDNA (Huang et al., 2025)'),
    'se': Variant("KernelDNA's input gate on static kernels", dict(type='SEConv2d')),
    'condconv8x': Variant('CondConv, 8 experts (Yang et al., 2019)', dict(type='CondConv2d', num_experts=8)),
    'dyconv4x': Variant('dynamic convolution, 4 kernels (Chen et al., 2020)', dict(type='DyConv2d', num_experts=4)),
    'dcd': Variant(
        'dynamic channel fusion (Li et al., 2021)',
        dict(type='DCDConv2d'),
        {'ResNet-18': dict(pool_size=2), 'MobileNetV2': dict(form='mobilenet')},
    ),
    'odconv1x': Variant('ODConv, 1 kernel (Li et al., 2022)', dict(type='ODConv2d', num_experts=1)),
    'odconv4x': Variant('ODConv, 4 kernels (Li et al., 2022)', dict(type='ODConv2d', num_experts=4)),
    'kw1x': Variant('KernelWarehouse, budget 1x (Li et al., 2024)', dict(type='KWConv2d', budget=1)),
    'kw4x': Variant(
        'KernelWarehouse, budget 4x (Li et al., 2024)', dict(type='KWConv2d', budget=4), {'MobileNetV2': dict(sharing='role')}
    ),
    'fdconv': Variant(
        'frequency dynamic convolution (Chen et al., 2025)', dict(type='FDConv2d'), {'MobileNetV2': dict(include=_POINTWISE)}
    ),
    'moe': Variant('one of 4 expert kernels per image', dict(type='MoEConv2d', num_experts=4, top_k=1)),
}

#: The variants that put another layer in the place of a convolution.
RIVALS: list[str] = [name for name, variant in VARIANTS.items() if variant.conv is not None]


def get_variant(name: str) -> Variant:
    """Row by name.

    Raises:
        UsageError: no such row; the message lists the nearest ones and all.
    """
    if name not in VARIANTS:
        near = difflib.get_close_matches(str(name), VARIANTS, n=3, cutoff=0.4)
        hint = f'; nearest: {", ".join(near)}' if near else ''
        raise UsageError(f'no variant is named {name!r}{hint}; all: {", ".join(VARIANTS)}')
    return VARIANTS[name]

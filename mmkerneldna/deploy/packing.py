"""Put packed layers in the place of plain ones, and count and free what they hold."""

from typing import cast

import torch
from mmcv.cnn.bricks.wrappers import Linear as EmptySafeLinear
from torch import nn

from ..modules import is_plain_conv, slots
from ..torch_internals import packed_bytes
from .packed import PackedConv2d
from .packed_kernels import PackedKernels
from .packed_linear import PackedLinear

# Types, not isinstance: a subclass with a forward of its own is more.
PLAIN_LINEARS = (nn.Linear, EmptySafeLinear)


def pack_layers(module: nn.Module, winograd: bool = True) -> int:
    """Replace every plain convolution and fully connected layer below ``module``, which is on a CPU, by a packed one.

    Nothing is replaced where torch comes without oneDNN, or where oneDNN is switched off.

    Args:
        module (nn.Module): changed in place.
        winograd (bool): whether wide 3x3 convolutions may be computed by :mod:`.winograd`.

    Returns:
        int: layers packed.
    """
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return 0
    places = [slot for slot in slots(module) if is_plain_conv(slot[2]) or type(slot[2]) in PLAIN_LINEARS]
    kernels = {id(layer.weight): PackedKernels() for _, _, layer in places}
    packed: dict[int, nn.Module] = {}
    for owner, name, layer in places:
        if id(layer) not in packed:
            held = kernels[id(layer.weight)]
            if isinstance(layer, nn.Linear):
                packed[id(layer)] = PackedLinear(layer, held)
            else:
                packed[id(layer)] = PackedConv2d(cast(nn.Conv2d, layer), held, winograd)
        setattr(owner, name, packed[id(layer)])
    return len(packed)


def packed_weight_bytes(module: nn.Module) -> int:
    """Memory of the packed kernels below ``module``, which its parameters do not show; each once."""
    return sum(packed_bytes(layout) for kernels in _packed_kernels(module) for layout in kernels.layouts())


def forget_layouts(module: nn.Module) -> None:
    """Free the packed kernels below ``module``, those for the sizes of a probe for instance."""
    for kernels in _packed_kernels(module):
        kernels.forget()


def _packed_kernels(module: nn.Module) -> list[PackedKernels]:
    return list({id(m.packed): m.packed for m in module.modules() if isinstance(m, PackedConv2d | PackedLinear)}.values())

"""Plain convolutions that lay out their kernel once, for CPUs.

oneDNN computes with kernels in a blocked layout of its own. An ``nn.Conv2d`` holds a plain one, which is laid out anew at
every call: on the 7x7 maps of a ResNet's last stage that takes longer than the convolution.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..modules import conv_arguments, is_plain_conv, slots
from ..torch_internals import pack_kernel, packed_conv, packed_conv_add

PACKED_DTYPES = (torch.float32, torch.bfloat16)


class Activation(NamedTuple):
    """An element-wise function by oneDNN's name for it, its constants, and its variant."""

    name: str = 'none'
    scalars: tuple[float, ...] = ()
    algorithm: str = ''

    def plainly(self, x: Tensor) -> Tensor:
        """The same in plain torch."""
        if self.name == 'gelu':
            return F.gelu(x, approximate=self.algorithm)
        return _PLAIN[self.name](x, *self.scalars)


_PLAIN = dict(
    none=lambda x: x,
    relu=F.relu,
    hardtanh=F.hardtanh,
    leaky_relu=F.leaky_relu,
    swish=F.silu,
    hardswish=F.hardswish,
    sigmoid=torch.sigmoid,
)
NONE, RELU = Activation(), Activation('relu')


class PackedConv2d(nn.Conv2d):
    """A convolution for inference on a CPU that keeps a second copy of its kernel, in oneDNN's layout.

    The copy is made at the first call, and again when the kernel was changed, cast or moved. Calls that oneDNN's packed
    convolution can't take (gradients, another dtype or device, tracing, padding that is not zeros or not given in numbers,
    an empty batch, wrong channels) run as an ``nn.Conv2d``. Returns channels_last. The layout depends on the kernel, not on
    the input size.

    Args:
        conv (nn.Conv2d): shares its parameters.
    """

    computes_plainly = True  # conv2d(x, weight, bias) with its own attributes, like a plain convolution

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(**conv_arguments(conv), device='meta')
        self.weight, self.bias = conv.weight, conv.bias
        self._packed: Any = None  # oneDNN's layout of the kernel
        self._packed_from: tuple | None = None
        self.train(conv.training)

    def forward(self, input: Tensor, other: Tensor | None = None, activation: Activation = NONE) -> Tensor:
        """``activation(conv(input) + other)``, in one go where oneDNN can.

        Args:
            input: (N, C_in, H, W).
            other: (N, C_out, H', W'), as large as the output, or None for 0.
            activation: of any kind without ``other``, none or ReLU with it.
        """
        if not self._takes(input) or (other is not None and not self._adds(other, input, activation)):
            y = self._conv_forward(input, self.weight, self.bias)
            return Activation(*activation).plainly(y if other is None else y + other)
        if self._packed_from != _state(self.weight):
            self._pack(input)
        geometry = self._packed, self.bias, self.padding, self.stride, self.dilation, self.groups
        if other is None:
            return packed_conv(input, *geometry, *activation)
        return packed_conv_add(input, other, *geometry, relu=activation == RELU)

    def _takes(self, input: Tensor) -> bool:
        return (
            input.dim() == 4
            and input.numel() > 0
            and input.shape[1] == self.in_channels
            and input.dtype == self.weight.dtype
            and input.dtype in PACKED_DTYPES
            and input.device.type == self.weight.device.type == 'cpu'
            and self.padding_mode == 'zeros'
            and not isinstance(self.padding, str)
            and not (torch.is_grad_enabled() and (input.requires_grad or self.weight.requires_grad))
            and not torch.jit.is_tracing()
            and not torch.compiler.is_compiling()
        )

    def _adds(self, other: Tensor, input: Tensor, activation: Activation) -> bool:
        """oneDNN adds maps of one size and type, and to ungrouped convolutions alone (others abort in half precision)."""
        padding = cast(Sequence[int], self.padding)
        sides = [
            (side + 2 * p - d * (k - 1) - 1) // s + 1
            for side, p, d, k, s in zip(input.shape[2:], padding, self.dilation, self.kernel_size, self.stride)
        ]
        return (
            self.groups == 1
            and activation in (NONE, RELU)
            and other.dtype == input.dtype
            and other.device == input.device
            and other.shape == (input.shape[0], self.out_channels, *sides)
        )

    def _pack(self, input: Tensor) -> None:
        padding = cast(Sequence[int], self.padding)
        self._packed = pack_kernel(self.weight, padding, self.stride, self.dilation, self.groups, input.shape)
        self._packed_from = _state(self.weight)

    def __getstate__(self) -> dict:
        # oneDNN's layout is of this process; a copy lays out its own
        return dict(vars(self), _packed=None, _packed_from=None)


def pack_convs(module: nn.Module) -> int:
    """Replace every plain convolution below ``module``, which is on a CPU, by a :class:`PackedConv2d`.

    Nothing is replaced where torch comes without oneDNN, or where oneDNN is switched off.

    Returns:
        int: convolutions packed.
    """
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return 0
    places = [(owner, name, conv) for owner, name, conv in slots(module) if is_plain_conv(conv)]
    packed = {id(conv): PackedConv2d(conv) for _, _, conv in places}
    for owner, name, conv in places:
        setattr(owner, name, packed[id(conv)])
    return len(packed)


def _state(weight: Tensor) -> tuple:
    """Changes with every write to, cast or move of a kernel."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version, weight.dtype

"""Plain convolutions that lay out their kernel once, for CPUs.

oneDNN computes with kernels in a blocked layout of its own. An ``nn.Conv2d`` holds a plain one, which is laid out anew at
every call: on the 7x7 maps of a ResNet's last stage that takes longer than the convolution.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..modules import conv_arguments
from ..torch_internals import pack_kernel, packed_conv, packed_conv_add
from .packed_kernels import MAX_SHAPES, PackedKernels
from .winograd import winograd_conv, winograd_kernel
from .winograd_choice import FASTER, is_faster, kind_of_call, may_pay_off

PACKED_DTYPES = (torch.float32, torch.bfloat16)
#: layouts depend on the size of the batch, if at all, where it is small
BATCHES = 8


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
    """A convolution for inference on a CPU that keeps copies of its kernel in oneDNN's layouts (see :mod:`.packed_kernels`).

    A copy is made at the first call of a size, and again when the kernel was changed, cast or moved. Calls that oneDNN's packed
    convolution can't take (gradients, another dtype or device, tracing, padding that is not zeros or not given in numbers,
    an empty batch, wrong channels) run as an ``nn.Conv2d``. Returns channels_last.

    Wide 3x3 convolutions in float32 are computed by :mod:`.winograd` at sizes where that is faster, by measurement.

    Args:
        conv (nn.Conv2d): shares its parameters.
        packed (PackedKernels, optional): of all convolutions that hold this kernel.
        winograd (bool): whether that may be.
    """

    computes_plainly = True  # conv2d(x, weight, bias) with its own attributes, like a plain convolution

    def __init__(self, conv: nn.Conv2d, packed: PackedKernels | None = None, winograd: bool = True) -> None:
        super().__init__(**conv_arguments(conv), device='meta')
        self.weight, self.bias = conv.weight, conv.bias
        self.packed = packed or PackedKernels()
        self.winograd = winograd
        self._takes_shapes: dict[tuple, bool] = {}
        self.train(conv.training)

    def forward(self, input: Tensor, other: Tensor | None = None, activation: Activation = NONE) -> Tensor:
        """``activation(conv(input) + other)``, in one go where oneDNN can.

        Args:
            input: (N, C_in, H, W).
            other: (N, C_out, H', W'), as large as the output, or None for 0.
            activation: of any kind without ``other``, none or ReLU with it.
        """
        weight, bias = self._parameters['weight'], self._parameters['bias']  # at 100 us a call, __getattr__ counts
        assert weight is not None
        if not self._takes(input, weight, other, activation):
            y = self._conv_forward(input, weight, bias)
            return Activation(*activation).plainly(y if other is None else y + other)
        if self.winograd and may_pay_off(self, input) and self._winograd_is_faster(input):
            return self._by_winograd(input, other, activation)
        return self._direct(input, other, activation)

    def _direct(self, input: Tensor, other: Tensor | None, activation: Activation) -> Tensor:
        weight, bias = cast(Tensor, self._parameters['weight']), self._parameters['bias']
        geometry = self.padding, self.stride, self.dilation, self.groups
        call = (min(input.shape[0], BATCHES), *input.shape[2:], *geometry)
        packed = self.packed.get(weight, call, pack_kernel, *geometry, input.shape)
        if other is None:
            return packed_conv(input, packed, bias, *geometry, *activation)
        return packed_conv_add(input, other, packed, bias, *geometry, relu=activation == RELU)

    def _by_winograd(self, input: Tensor, other: Tensor | None, activation: Activation) -> Tensor:
        weight, bias = cast(Tensor, self._parameters['weight']), self._parameters['bias']
        kernel = self.packed.get(weight, ('winograd',), winograd_kernel)
        summand = None if other is None else other.permute(0, 2, 3, 1)

        def finish(part: Tensor, images: slice, rows: slice) -> None:
            if bias is not None:
                part.add_(bias)
            if summand is not None:
                part.add_(summand[images, rows])
            if activation != NONE:
                part.copy_(Activation(*activation).plainly(part))

        return winograd_conv(input, kernel, cast(Sequence[int], self.padding), finish)

    def _winograd_is_faster(self, input: Tensor) -> bool:
        key = kind_of_call(self, input)
        if key not in FASTER:
            call = input, None, NONE
            FASTER[key] = is_faster(partial(self._direct, *call), partial(self._by_winograd, *call))
            self.packed.forget()  # the layouts of the way that is not taken
        return FASTER[key]

    def _takes(self, input: Tensor, weight: Tensor, other: Tensor | None, activation: Activation) -> bool:
        if not may_be_packed(input, weight):
            return False
        shapes: tuple = (input.shape, input.dtype, input.device, weight.device, activation)
        if other is not None:
            shapes += (other.shape, other.dtype, other.device)
        known = self._takes_shapes.get(shapes)
        if known is None:
            if len(self._takes_shapes) >= MAX_SHAPES:
                self._takes_shapes.clear()
            known = self._fits(input, weight) and (other is None or self._adds(other, input, activation))
            self._takes_shapes[shapes] = known
        return known

    def _fits(self, input: Tensor, weight: Tensor) -> bool:
        return (
            input.dim() == 4
            and input.numel() > 0
            and input.shape[1] == self.in_channels
            and input.dtype in PACKED_DTYPES
            and input.device.type == weight.device.type == 'cpu'
            and self.padding_mode == 'zeros'
            and not isinstance(self.padding, str)
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

    def __getstate__(self) -> dict:
        return dict(vars(self), _takes_shapes={})


def may_be_packed(input: Tensor, weight: Tensor) -> bool:
    """Whether a call is one that oneDNN's packed functions are for, as far as it has nothing to do with shapes."""
    return not (
        input.dtype != weight.dtype
        or (torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad))
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
    )

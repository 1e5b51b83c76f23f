"""Conv2d with n static expert kernels: what CondConv, DyConv and ODConv have in common.

Letters: N batch, C_in / C_out channels, g groups, k kernel side, n experts.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .drop_in import PaddingMode
from .mixture import mixture_conv2d
from .static_start import StaticStart


def check_num_experts(num_experts: int) -> None:
    """Raise ValueError unless ``num_experts`` is a whole number of at least one."""
    if isinstance(num_experts, bool) or not isinstance(num_experts, int) or num_experts < 1:
        raise ValueError(
            f'num_experts={num_experts!r} must be a whole number of at least 1; for a static convolution use Conv2d'
        )


def hidden_channels(channels: int, reduction: int, default: int, min_channels: int = 1) -> int:
    """Width of the hidden layer of an attention: ``channels / reduction`` rounded down, at least ``min_channels``.

    Raises:
        ValueError: ``reduction`` below 1, or larger than the channels and the layer's ``default``. The default itself
            is never refused: ``conv_cfg`` reaches stems of 3 channels too.
    """
    if min_channels < 1:
        raise ValueError(f'min_channels={min_channels} must be at least 1')
    if not 1 <= reduction <= max(channels, default):
        raise ValueError(
            f'reduction={reduction} must lie between 1 and {max(channels, default)}, for it divides '
            f'{channels} channels (the default is {default})'
        )
    return max(channels // reduction, min_channels)


def check_temperature(temperature: float) -> float:
    """Return ``temperature`` as a float; ValueError unless it is positive."""
    if temperature <= 0:
        raise ValueError(f'temperature={temperature} must be positive; 1 leaves the attention as it is')
    return float(temperature)


def pad_for_mode(conv: nn.Module, x: Tensor) -> tuple[Tensor, Any]:
    """Pad ``x`` as ``conv.padding_mode`` says; returns it with the padding that is left to the convolution."""
    if conv.padding_mode == 'zeros':
        return x, conv.padding
    return F.pad(x, conv._reversed_padding_repeated_twice, mode=conv.padding_mode), 0


class ExpertConv2d(StaticStart, nn.Conv2d):
    """Base of the mixtures: ``weight`` holds n kernels, (n, C_out, C_in/g, k, k).

    A subclass computes an attention from its input and calls :meth:`convolve`. It stays an ``nn.Conv2d``, so that
    upstream code finds the geometry where it looks for it and ``mmcv.cnn.fuse_conv_bn`` folds a BN into all experts,
    but *not a direct child of it* for mmengine: ``dict(type='Kaiming', layer='Conv2d')`` compares the class and its
    direct bases by name and would take n for C_out in the fan. The experts have a Kaiming init of their own, one fan
    per expert, on construction and in :meth:`init_weights`, which mmengine and mmcv call in place of theirs.

    The kernel of a static checkpoint, (C_out, C_in/g, k, k), seeds every expert, divided by ``static_gain``, and
    :meth:`make_neutral` gives the attention a start at which the layer computes the static output. The experts start
    alike, so the attention has to tell them apart, or they would learn alike.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: as in
            ``nn.Conv2d``.
        num_experts (int): n.

    Raises:
        ValueError: ``num_experts`` below 1, or what ``nn.Conv2d`` refuses.
    """

    #: factor on the mixed kernel while the attention is neutral and the experts are alike
    static_gain = 1.0

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = 'zeros',
        num_experts: int = 4,
    ) -> None:
        check_num_experts(num_experts)
        # on 'meta': the single kernel, replaced at once, costs neither memory nor random numbers
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, False, padding_mode, device='meta'
        )
        self.num_experts = num_experts
        self.weight = nn.Parameter(torch.empty(num_experts, *self.weight.shape))
        if bias:
            self.bias = nn.Parameter(torch.zeros(out_channels))

    def init_weights(self) -> None:
        """Kaiming-normal experts (fan out, as mmengine's default for convolutions), zero bias."""
        for kernel in self.weight:
            nn.init.kaiming_normal_(kernel, mode='fan_out', nonlinearity='relu')
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def convolve(self, x: Tensor, attention: Tensor | None, bias: Tensor | None, scales: Sequence[Tensor] = ()) -> Tensor:
        """Convolve with the mixed kernels, see :func:`.mixture.mixture_conv2d`."""
        x, padding = pad_for_mode(self, x)
        return mixture_conv2d(x, attention, self.weight, bias, self.stride, padding, self.dilation, self.groups, scales)

    def _apply(self, fn, recurse: bool = True):
        return super()._apply(on_four_axes(fn), recurse)

    def make_neutral(self) -> None:
        """Make the factor on experts that are alike ``static_gain``, for every input. Nothing to do where it always is."""

    def seed(self, kernel: Tensor, bias: Tensor | None) -> dict[str, Tensor | None]:
        """See :class:`.static_start.StaticStart`."""
        self.make_neutral()
        # whole tensors, not views: with assign=True they become the parameters
        experts = (kernel / self.static_gain).expand_as(self.weight).clone()
        if bias is not None and self.bias is not None and self.bias.dim() == 2:
            bias = bias.expand_as(self.bias).clone()
        return dict(weight=experts, bias=bias)

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, num_experts={self.num_experts}'


def on_four_axes(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """``fn`` of ``nn.Module._apply`` for modules with parameters of five axes, (n, C_out, C_in/g, k, k).

    ``net.to(memory_format=torch.channels_last)`` raises on five axes, so these go through it as one long kernel.
    """
    return lambda t: fn(t.flatten(0, 1)).unflatten(0, t.shape[:2]) if t.dim() == 5 else fn(t)


def init_attention(convs: Sequence[nn.Conv2d | nn.Linear]) -> None:
    """Kaiming-normal kernels (fan out) and zero bias: every attention starts near its middle."""
    for conv in convs:
        nn.init.kaiming_normal_(conv.weight, mode='fan_out', nonlinearity='relu')
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)

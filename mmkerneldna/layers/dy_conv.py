"""DyConv: attention over convolution kernels, with a softmax whose temperature is annealed.

Dynamic Convolution: Attention over Convolution Kernels, Chen et al., CVPR 2020, https://arxiv.org/abs/1912.03458
"""

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from .drop_in import PaddingMode
from .expert_conv import ExpertConv2d, check_temperature, hidden_channels, init_attention


class KernelAttention(nn.Module):
    """Global average pool -> 1x1 conv -> ReLU -> 1x1 conv: one logit per expert (paper, figure 3)."""

    def __init__(self, channels: int, hidden: int, num_experts: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=False)
        self.fc2 = nn.Conv2d(hidden, num_experts, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> logits (N, n)."""
        return self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1)))).flatten(1)


@MODELS.register_module()
class DyConv2d(ExpertConv2d):
    """Kernel and bias are ``sum_j pi_j W_j`` and ``sum_j pi_j b_j`` with ``pi = softmax(logits(x) / temperature)``.

    Paper, equations 1, 2 and 5. ``temperature`` may be set at any time; the paper lowers it from 30 to 1 over the first
    10 epochs.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: as in
            ``nn.Conv2d``; a bias is one per expert, (n, C_out).
        num_experts (int): n. Defaults to 4 (the paper).
        reduction (int): ``in_channels`` over the hidden width of the attention, which is at least 4. Defaults to 4.
        temperature (float): the initial one. Defaults to 1.

    Raises:
        ValueError: ``num_experts`` below 1, ``reduction`` larger than the channels (and 4), or a temperature that isn't
            positive.
    """

    #: before the first iteration, after the warm-up; see :class:`.TemperatureHook`
    temperature_schedule = (30.0, 1.0)

    # "every convolution layer but the first" (section 5.1), shortcuts included
    paper_patterns = {'ResNet': ['layer*'], 'MobileNetV2': ['layer*', 'conv2.*']}

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
        reduction: int = 4,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, False, padding_mode, num_experts
        )
        self.temperature = check_temperature(temperature)
        self.attention = KernelAttention(in_channels, hidden_channels(in_channels, reduction, 4, 4), num_experts)
        if bias:
            self.bias = nn.Parameter(torch.zeros(num_experts, out_channels))
        self.init_weights()

    def init_weights(self) -> None:
        """Kaiming experts and attention, zero biases."""
        super().init_weights()
        init_attention([self.attention.fc1, self.attention.fc2])

    # As a softmax sums to one, experts that are alike are mixed to the same kernel whatever the attention: nothing to make
    # neutral, and a random attention tells them apart from the first step.

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        attention = F.softmax(self.attention(x) / self.temperature, dim=1)
        bias = self.bias
        if bias is not None and bias.dim() == 2:  # (C_out,) once a BN was folded into a layer without bias
            bias = attention.to(bias.dtype) @ bias
        return self.convolve(x, attention, bias)

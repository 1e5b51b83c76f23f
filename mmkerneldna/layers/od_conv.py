"""ODConv: attention along all four dimensions of the kernel space.

Omni-Dimensional Dynamic Convolution, Li et al., ICLR 2022, https://arxiv.org/abs/2209.07947

Letters: N batch, C_in / C_out channels, g groups, k kernel side, n experts.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmengine.model import constant_init
from mmengine.registry import MODELS
from torch import Tensor, nn

from .drop_in import PaddingMode
from .expert_conv import ExpertConv2d, check_temperature, hidden_channels, init_attention
from .pooled_norm import build_pooled_norm, pooled_norm


class Attentions(NamedTuple):
    """The four attentions; None where the layer has no such dimension."""

    channel: Tensor  # (N, C_in, 1, 1)
    filter: Tensor | None  # (N, C_out, 1, 1)
    spatial: Tensor | None  # (N, 1, 1, k, k)
    kernel: Tensor | None  # (N, n)


class OmniAttention(nn.Module):
    """Pool -> 1x1 conv -> norm -> ReLU, then one 1x1 conv per kind of attention (paper, figure 2).

    Depthwise layers have no filter attention (it is the channel attention), 1x1 kernels no spatial one, a single
    expert no kernel attention.
    """

    def __init__(self, conv: nn.Conv2d, hidden: int, num_experts: int, norm_cfg: dict | None) -> None:
        super().__init__()
        self.kernel_size = conv.kernel_size
        positions = conv.kernel_size[0] * conv.kernel_size[1]
        depthwise = conv.in_channels == conv.groups == conv.out_channels
        self.fc = nn.Conv2d(conv.in_channels, hidden, 1, bias=False)
        self.norm = build_pooled_norm(norm_cfg, hidden)
        self.channel_fc = nn.Conv2d(hidden, conv.in_channels, 1)
        self.filter_fc = None if depthwise else nn.Conv2d(hidden, conv.out_channels, 1)
        self.spatial_fc = None if positions == 1 else nn.Conv2d(hidden, positions, 1)
        self.kernel_fc = None if num_experts == 1 else nn.Conv2d(hidden, num_experts, 1)

    def sigmoids(self) -> list[nn.Conv2d]:
        """The heads behind which there is a sigmoid."""
        return [head for head in (self.channel_fc, self.filter_fc, self.spatial_fc) if head is not None]

    def forward(self, x: Tensor, temperature: float) -> Attentions:
        """(N, C_in, H, W) -> the attentions of each sample."""
        hidden = F.relu(pooled_norm(self.norm, self.fc(F.adaptive_avg_pool2d(x, 1)), self.training))

        def gate(head):
            return None if head is None else (head(hidden) / temperature).sigmoid()

        spatial = gate(self.spatial_fc)
        kernel = None if self.kernel_fc is None else F.softmax(self.kernel_fc(hidden).flatten(1) / temperature, dim=1)
        return Attentions(
            gate(self.channel_fc),
            gate(self.filter_fc),
            None if spatial is None else spatial.view(-1, 1, 1, *self.kernel_size),
            kernel,
        )


@MODELS.register_module()
class ODConv2d(ExpertConv2d):
    """``y = sum_j (a_kernel,j . a_filter . a_channel . a_spatial . W_j) * x`` (paper, equation 2).

    Scaling the input by the channel attention and the output by the filter attention is the same as scaling the kernel;
    the smaller of the two is scaled. With one expert of 1x1 the kernel is static: the layer is then one ordinary
    convolution for the whole batch. All four attentions are divided by ``temperature``, which may
    be set at any time; the paper lowers it from 30 to 1 over the first 10 epochs. The bias is static and not scaled.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: as in
            ``nn.Conv2d``.
        num_experts (int): n. Defaults to 4; the paper also uses 1.
        reduction (int): ``in_channels`` over the hidden width of the attention. Defaults to 16 (the paper).
        min_channels (int): the least hidden width. Defaults to 16 (the paper).
        norm_cfg (dict, optional): norm of the hidden features: BN (the paper), SyncBN, LN, GN or None. BN also trains
            at a batch of one, see :mod:`.pooled_norm`.
        temperature (float): the initial one. Defaults to 1.

    Raises:
        ValueError: ``num_experts`` below 1, ``reduction`` larger than the channels (and 16), or a temperature
            that isn't positive.
    """

    #: before the first iteration, after the warm-up; see :class:`.TemperatureHook`
    temperature_schedule = (30.0, 1.0)

    # Section 4.1: every convolution but the first; the released ResNets keep the 1x1 shortcuts static as well, and only
    # then have the published number of parameters.
    paper_patterns = {'ResNet': ['layer*.conv*'], 'MobileNetV2': ['layer*', 'conv2.*']}

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
        reduction: int = 16,
        min_channels: int = 16,
        norm_cfg: dict | None = dict(type='BN'),
        temperature: float = 1.0,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, num_experts
        )
        self.temperature = check_temperature(temperature)
        hidden = hidden_channels(in_channels, reduction, 16, min_channels)
        self.attention = OmniAttention(self, hidden, num_experts, norm_cfg)
        self.static_gain = 0.5 ** len(self.attention.sigmoids())
        self.init_weights()

    def init_weights(self) -> None:
        """Kaiming experts and attention, zero biases."""
        super().init_weights()
        init_attention([module for module in self.attention.modules() if isinstance(module, nn.Conv2d)])

    def make_neutral(self) -> None:
        """Every sigmoid is one half. The kernel attention stays random: a softmax sums to one whatever it is."""
        for head in self.attention.sigmoids():
            constant_init(head, 0)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        attention = self.attention(x, self.temperature)
        scales = [] if attention.spatial is None else [attention.spatial]
        if self._kernel_is_smaller(x):
            return self.convolve(x, attention.kernel, self.bias, [*scales, kernel_scale(attention, self.groups)])
        # without a filter attention the bias can ride on the convolution
        bias = self.bias if attention.filter is None else None
        y = self.convolve(x * attention.channel, attention.kernel, bias, scales)
        if attention.filter is None:
            return y
        # y is ours alone: without gradients it needs no copy
        y = y * attention.filter if torch.is_grad_enabled() else y.mul_(attention.filter)
        return y if self.bias is None else y + self.bias.to(y.dtype).view(-1, 1, 1)

    def _kernel_is_smaller(self, x: Tensor) -> bool:
        """Whether scaling the kernel of a sample is cheaper than scaling its input and output."""
        dynamic = self.num_experts > 1 or self.attention.spatial_fc is not None
        outputs = self.out_channels * x.shape[2] * x.shape[3] // (self.stride[0] * self.stride[1])
        return dynamic and self.weight[0].numel() < x.shape[1] * x.shape[2] * x.shape[3] + outputs


def kernel_scale(attention: Attentions, groups: int) -> Tensor:
    """Channel and filter attention as one factor of the kernels, (N, C_out, C_in/g, 1, 1)."""
    channel = attention.channel.unflatten(1, (groups, 1, -1))  # (N, g, 1, C_in/g, 1, 1)
    if attention.filter is None:  # depthwise: a group is a channel
        return channel.flatten(1, 2)
    return (attention.filter.unflatten(1, (groups, -1, 1)) * channel).flatten(1, 2)

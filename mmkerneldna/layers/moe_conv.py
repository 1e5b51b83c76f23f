"""MoEConv: a gate picks k of n expert kernels per image, and only these are computed.

Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer, Shazeer et al., ICLR 2017,
https://arxiv.org/abs/1701.06538; the gate and its balance loss are in :mod:`.expert_gate`.

Letters: N batch, C_in / C_out channels, g groups, n experts, k experts per image.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor

from .drop_in import PaddingMode, in_format_of
from .expert_conv import ExpertConv2d, pad_for_mode
from .expert_gate import ExpertGate, weights_of_all
from .routed import is_written


def dispatch(x: Tensor, weights: Tensor, chosen: Tensor, expert: Callable[[Tensor, int], Tensor]) -> Tensor:
    """``y_i = sum_j weights_ij expert(x_i, chosen_ij)``, each expert called once, on the images that chose it.

    Args:
        x: (N, C_in, H, W), N at least 1.
        weights: (N, k).
        chosen: (N, k), expert numbers, no number twice per image.
        expert: from images (M, C_in, H, W) and an expert's number to (M, C_out, H', W').

    Returns:
        (N, C_out, H', W').
    """
    y: Tensor | None = None
    for number in chosen.unique().tolist():
        images, places = (chosen == number).nonzero(as_tuple=True)
        everything = len(images) == len(x)
        part = expert(x if everything else in_format_of(x, x[images]), number)
        part = part * weights[images, places].to(part.dtype)[:, None, None, None]
        if everything:
            y = part if y is None else y + part
        else:
            y = in_format_of(part, part.new_zeros(len(x), *part.shape[1:])) if y is None else y
            y = y.index_add_(0, images, part)  # in place: it keeps channels_last and copies nothing
    assert y is not None  # x is not empty
    return y


@MODELS.register_module()
class MoEConv2d(ExpertGate, ExpertConv2d):
    """``y = sum over the k most probable experts of p_e (W_e * x)``, ``p = softmax(linear(normalise(pool(x))))``.

    Cost is that of k convolutions whatever n is. The outputs are mixed, not the kernels: each image runs through its k
    experts alone. All gate values stay below one, so that even with k = 1 the gate has a gradient. The balance loss
    reaches the losses of a detector or segmenter through ``RoutingLossHook``, or through
    :func:`.routed.collect_losses` in a loop of your own; without it the gate tends to use few experts. The bias is static.

    The pooled features are normalised over their channels, without learned scale: they are of any size (a ResNet-50's reach
    some hundreds), and a gate that is sure of itself makes the layer's output n / k times as large as an undecided one.
    With the kernel of a static checkpoint the gate starts at zero: every gate value is 1 / n, the output that of the static
    convolution, and the experts part as they are trained on different images.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: as in ``nn.Conv2d``.
        num_experts (int): n. Defaults to 4.
        top_k (int): k, experts per image. Defaults to 1.
        gate (dict, optional): config of another gate than the linear one, for instance ``dict(type='TreeRouter')``; see
            :class:`.expert_gate.ExpertGate`.

    Attributes:
        share (Tensor): (n,), running part of the assignments that each expert got in training; sums to 1.

    Raises:
        ValueError: ``num_experts`` below 1, ``top_k`` not between 1 and ``num_experts``, or not 1 with a tree.
    """

    # where the 3x3 convolutions are, as DyConv
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
        top_k: int = 1,
        gate: dict | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, num_experts
        )
        self._make_gate(in_channels, top_k, gate)
        self.init_weights()

    def init_weights(self) -> None:
        """Kaiming experts and a gate that starts nearly undecided."""
        super().init_weights()
        self.init_gate()

    def gate_features(self, features: Tensor) -> Tensor:
        """Of one size, whatever that of the pooled ones."""
        return F.layer_norm(features, (self.in_channels,)) / math.sqrt(self.in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        pooled = F.adaptive_avg_pool2d(x, 1).flatten(1)
        weights, chosen = self.choose(pooled)
        x, padding = pad_for_mode(self, x)

        def expert(images: Tensor, number: int) -> Tensor:
            return F.conv2d(images, self.weight[number], None, self.stride, padding, self.dilation, self.groups)

        if is_written():
            every = weights_of_all(weights, chosen, self.num_experts).to(x.dtype)[:, :, None, None, None].unbind(1)
            y = torch.stack([expert(x, number) * weight for number, weight in enumerate(every)]).sum(0)
        elif len(x):
            y = dispatch(x, weights, chosen, expert)
        else:  # the graph stays connected, for DDP
            y = expert(x, 0) * weights.sum(1).view(-1, 1, 1, 1)
        return y if self.bias is None else y + self.bias.to(y.dtype).view(-1, 1, 1)

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, top_k={self.top_k}'

"""MoEConv: a gate picks k of n expert kernels per image, and only these are computed.

Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer, Shazeer et al., ICLR 2017,
https://arxiv.org/abs/1701.06538; gate values (softmax, then top-k, not renormalised) as in Scaling Vision with Sparse
Mixture of Experts, Riquelme et al., NeurIPS 2021, https://arxiv.org/abs/2106.05974; balance loss of Switch Transformers,
Fedus et al., JMLR 2022, https://arxiv.org/abs/2101.03961

Letters: N batch, C_in / C_out channels, g groups, n experts, k experts per image.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from .drop_in import PaddingMode, at_least_fp32, in_format_of
from .expert_conv import ExpertConv2d, pad_for_mode
from .routed import Routed

#: Step of the running share of each expert: it looks back over some 20 batches. The paper takes the share within the batch,
#: of thousands of tokens; a detector's batch has one or two images, whose share says nothing of the balance.
SHARE_STEP = 0.05


def balance_loss(probabilities: Tensor, share: Tensor) -> Tensor:
    """``n sum_e share_e mean_i p_ie`` (Switch Transformers, equation 4): 1 when all experts are used alike.

    Args:
        probabilities: p, (N, n), the softmax of the gate.
        share: (n,), the part of all assignments that each expert got; sums to 1, without gradient.
    """
    return len(share) * (share * probabilities.mean(0)).sum()


def most_probable(probabilities: Tensor, share: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k most probable experts of each image; of equally probable ones those that were used least, then the first.

    A gate that starts at zero finds all experts equally probable, so that they take turns until it knows better.

    Args:
        probabilities: p, (N, n).
        share: (n,), as in :func:`balance_loss`.
        k: experts per image.

    Returns:
        Their probabilities and numbers, (N, k) each.
    """
    by_use = share.argsort(stable=True)
    chosen = by_use[probabilities[:, by_use].argsort(dim=1, descending=True, stable=True)[:, :k]]
    return probabilities.gather(1, chosen), chosen


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
class MoEConv2d(Routed, ExpertConv2d):
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

    Attributes:
        share (Tensor): (n,), running part of the assignments that each expert got in training; sums to 1.

    Raises:
        ValueError: ``num_experts`` below 1, or ``top_k`` not between 1 and ``num_experts``.
    """

    loss_name, rate_name = 'moe_balance', 'moe_share'
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
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, num_experts
        )
        if not isinstance(top_k, int) or not 1 <= top_k <= num_experts:
            raise ValueError(f'top_k={top_k!r} must be a whole number between 1 and num_experts={num_experts}')
        self.top_k = top_k
        self.static_gain = top_k / num_experts  # every gate value starts at 1 / n
        self.gate = nn.Linear(in_channels, num_experts)
        self.register_buffer('share', torch.full((num_experts,), 1 / num_experts))
        self.init_weights()

    def init_weights(self) -> None:
        """Kaiming experts and a gate that starts nearly undecided."""
        super().init_weights()
        nn.init.normal_(self.gate.weight, std=0.01)
        nn.init.zeros_(self.gate.bias)

    def route(self, pooled: Tensor) -> Tensor:
        """(N, C_in) -> probabilities (N, n), in fp32 under autocast."""
        features = F.layer_norm(pooled, pooled.shape[1:]) / math.sqrt(pooled.shape[1])
        return at_least_fp32(self.gate(features)).softmax(1)

    def make_neutral(self) -> None:
        """Every gate value is 1 / n."""
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        pooled = F.adaptive_avg_pool2d(x, 1).flatten(1)
        probabilities = self.route(pooled)
        weights, chosen = most_probable(probabilities, self.share, self.top_k)
        if self.collects and len(x):
            self.note(*self._seen(pooled, chosen))
        x, padding = pad_for_mode(self, x)

        def expert(images: Tensor, number: int) -> Tensor:
            return F.conv2d(images, self.weight[number], None, self.stride, padding, self.dilation, self.groups)

        if len(x):
            y = dispatch(x, weights, chosen, expert)
        else:  # the graph stays connected, for DDP
            y = expert(x, 0) * weights.sum(1).view(-1, 1, 1, 1)
        return y if self.bias is None else y + self.bias.to(y.dtype).view(-1, 1, 1)

    @torch.no_grad()
    def _seen(self, pooled: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        counts = F.one_hot(chosen, self.num_experts).sum((0, 1)).to(self.share.dtype)
        self.share.lerp_(counts / counts.sum(), SHARE_STEP)
        # Reentrant checkpointing has no graph here the first time, so the loss then moves the gate alone. The share is a copy:
        # it moves on if a head uses the layer again.
        return pooled, self.share.clone()

    def loss_of(self, pooled: Tensor, share: Tensor) -> Tensor:
        """The balance loss of one call."""
        return balance_loss(self.route(pooled), share)

    def rates(self) -> dict[str, float]:
        """The share of each expert."""
        return {f'expert{i}': value for i, value in enumerate(self.share.tolist())}

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, top_k={self.top_k}'

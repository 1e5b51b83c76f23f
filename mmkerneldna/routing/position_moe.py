"""PositionMoE2d: every position of a map goes to its top-k of n expert 1x1 convolutions.

Scaling Vision with Sparse Mixture of Experts, Riquelme et al., NeurIPS 2021, https://arxiv.org/abs/2106.05974, of
convolutional maps. No capacity: no position is dropped.

Letters: N batch, P positions of all images (N H' W'), C_in / C_out channels, n experts, k experts per position.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor

from ..layers.drop_in import PaddingMode, is_channels_last
from ..layers.expert_conv import ExpertConv2d
from ..layers.expert_gate import ExpertGate, weights_of_all
from ..layers.routed import is_written
from .infer_positions import Writer, infer_positions, infers_plainly

Expert = Callable[[Tensor], Tensor]


def to_positions(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N H W, C); nothing is copied where ``x`` is channels_last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def to_map(positions: Tensor, size: Sequence[int], like: Tensor) -> Tensor:
    """(N H W, C) -> (N, C, H, W) of ``size`` (H, W), channels_last where ``like`` is."""
    y = positions.view(-1, *size, positions.shape[1]).permute(0, 3, 1, 2)
    return y if is_channels_last(like) else y.contiguous()


def route_positions(positions: Tensor, weights: Tensor, chosen: Tensor, experts: Sequence[Expert]) -> Tensor:
    """``y_i = sum_j weights_ij experts[chosen_ij](positions_i)``, each expert called once, on the positions that chose it.

    The positions are sorted by expert, so that each call sees one block of memory. All sums have one fixed order.

    Args:
        positions: (P, C_in).
        weights: (P, k).
        chosen: (P, k), expert numbers, no number twice per position.
        experts: n functions from (M, C_in) to (M, C_out); with as many as k, or in what is exported, nothing is sorted.

    Returns:
        (P, C_out).
    """
    k = chosen.shape[1]
    if k == len(experts) or is_written():
        in_order = weights_of_all(weights, chosen, len(experts))
        parts = [_scaled(expert(positions), in_order[:, i : i + 1]) for i, expert in enumerate(experts)]
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
    order, counts, inverse = group(chosen.flatten(), len(experts))
    blocks = positions.index_select(0, order if k == 1 else order // k).split(counts)
    y = torch.cat([expert(block) for expert, block in zip(experts, blocks)])
    y = _scaled(y, weights.flatten().index_select(0, order)[:, None])
    y = y.index_select(0, inverse)  # a gather: far faster on a CPU than to scatter by `order`
    return y if k == 1 else y.unflatten(0, (-1, k)).sum(1)


def group(chosen: Tensor, experts: int) -> tuple[Tensor, list[int], Tensor]:
    """The order that sorts assignments by expert, how many each expert has, and the inverse of the order.

    Args:
        chosen: (A,), expert numbers.
        experts: n.
    """
    order = chosen.argsort(stable=True)
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return order, torch.bincount(chosen, minlength=experts).tolist(), inverse


def _scaled(y: Tensor, weights: Tensor) -> Tensor:
    return y * weights.to(y.dtype) if y.requires_grad or weights.requires_grad else y.mul_(weights.to(y.dtype))


@MODELS.register_module()
class PositionMoE2d(ExpertGate, ExpertConv2d):
    """``y_i = sum over the k most probable experts of p_ie W_e x_i``, ``p_i = softmax(linear(x_i))``, at every position i.

    A 1x1 convolution that costs k of them, whatever n is, plus sorting: worth it where the channels are many. Takes Conv2d's
    arguments, so ``conv_cfg`` and ``DynamicConvs`` put it into any net. Gate values stay below one, so the gate has a gradient
    even with k = 1. The balance loss reaches the losses of a model as that of ``MoEConv2d`` does. The bias is static. With the
    kernel of a static checkpoint the gate starts at zero and the output is that of the static convolution.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: as in ``nn.Conv2d``;
            the kernel must be 1x1, without padding and groups.
        num_experts (int): n. Defaults to 4.
        top_k (int): k, experts per position. Defaults to 1.
        gate (dict, optional): another gate than the linear one, for instance ``dict(type='TreeRouter')``.

    Raises:
        ValueError: another kernel size, padding or groups; ``num_experts`` below 1, ``top_k`` not between 1 and
            ``num_experts``, or not 1 with a tree.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size=1,
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
        if self.kernel_size != (1, 1) or self.padding != (0, 0) or groups != 1:
            raise ValueError(
                f'PositionMoE2d routes single positions: kernel_size={kernel_size}, padding={padding}, groups={groups} must be '
                '1, 0, 1; for larger kernels see MoEConv2d, which routes images'
            )
        self._make_gate(in_channels, top_k, gate)
        self.init_weights()

    def init_weights(self) -> None:
        """Kaiming experts and a gate that starts nearly undecided."""
        super().init_weights()
        self.init_gate()

    def experts(self) -> list[Expert]:
        """The n functions from (M, C_in) to (M, C_out)."""
        # unbind: a loop over weight[e] would fill the gradient of all experts once for each
        return [partial(F.linear, weight=kernel) for kernel in self.weight.flatten(2).unbind()]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        kept = x if self.stride == (1, 1) else x[:, :, :: self.stride[0], :: self.stride[1]]
        positions = to_positions(kept)
        weights, chosen = self.choose(positions)
        if infers_plainly(positions, chosen, self.weight):
            y = infer_positions(positions, weights, chosen, self._writers(), self.out_channels, self.bias)
            return to_map(y, kept.shape[2:], x)
        y = route_positions(positions, weights, chosen, self.experts())
        return to_map(y if self.bias is None else y + self.bias.to(y.dtype), kept.shape[2:], x)

    def _writers(self) -> list[Writer]:
        return [partial(_written, kernel) for kernel in self.weight.flatten(2).mT]

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, top_k={self.top_k}'


def _written(kernel: Tensor, block: Tensor, y: Tensor) -> None:
    torch.mm(block, kernel, out=y)

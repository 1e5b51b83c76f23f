"""PositionFFN2d: every position of a map goes to its top-k of n two-layer perceptrons.

Scaling Vision with Sparse Mixture of Experts, Riquelme et al., NeurIPS 2021, https://arxiv.org/abs/2106.05974; experts that
start as copies of a dense one: Sparse Upcycling, Komatsuzaki et al., ICLR 2023, https://arxiv.org/abs/2212.05055

Letters: N batch, M positions of one expert, C_in / C_h / C_out channels, n experts, k experts per position.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..layers.expert_conv import check_num_experts
from ..layers.expert_gate import ExpertGate
from .infer_positions import infer_positions, infers_plainly
from .position_moe import Expert, route_positions, to_map, to_positions


@MODELS.register_module()
class PositionFFN2d(ExpertGate, nn.Module):
    """``y_i = sum over the k most probable experts of p_ie (W2_e act(W1_e x_i + b1_e)) + b2``, at every position i.

    The gate, the balance loss and the cost are those of ``PositionMoE2d``; here sorting is cheap beside two products.

    Args:
        in_channels (int): C_in.
        hidden_channels (int): C_h.
        out_channels (int, optional): C_out. Defaults to C_in.
        num_experts (int): n. Defaults to 4.
        top_k (int): k, experts per position. Defaults to 1.
        act_cfg (dict): the activation, without state. Defaults to GELU.
        gate (dict, optional): as in ``PositionMoE2d``.
        channel_dim (int): 1 for maps, -1 for inputs with the channels last, (..., C_in), as a ``Linear`` takes.

    Attributes:
        between (nn.Module, optional): behind the activation, something that looks at the hidden map as a whole, in the layout
            of the input: the response norm of ConvNeXt V2. It gets the map of each rank of experts by itself.

    Raises:
        ValueError: ``num_experts`` below 1, ``top_k`` not between 1 and ``num_experts``, or not 1 with a tree.
    """

    kernel_size = (1, 1)
    between: nn.Module | None

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int | None = None,
        num_experts: int = 4,
        top_k: int = 1,
        act_cfg: dict = dict(type='GELU'),
        gate: dict | None = None,
        channel_dim: int = 1,
    ) -> None:
        super().__init__()
        check_num_experts(num_experts)
        self.channel_dim, self.between = channel_dim, None
        self.in_channels, self.out_channels = in_channels, out_channels or in_channels
        self.num_experts = num_experts
        self.weight1 = nn.Parameter(torch.empty(num_experts, hidden_channels, in_channels))
        self.bias1 = nn.Parameter(torch.zeros(num_experts, hidden_channels))
        self.weight2 = nn.Parameter(torch.empty(num_experts, self.out_channels, hidden_channels))
        self.bias2 = nn.Parameter(torch.zeros(self.out_channels))
        self.act = MODELS.build(act_cfg)
        self._make_gate(in_channels, top_k, gate)
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal, as ConvNeXt's, behind a gate that starts nearly undecided."""
        for weight in (self.weight1, self.weight2):
            nn.init.trunc_normal_(weight, std=min(0.02, 1 / math.sqrt(weight.shape[2])))
        nn.init.zeros_(self.bias1)
        nn.init.zeros_(self.bias2)
        self.init_gate()

    @torch.no_grad()
    def start_as(self, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> None:
        """Compute from now on what a dense perceptron does, whatever expert a position goes to.

        Args:
            first, second: kernel and bias of its layers, (C_h, C_in) and (C_h,), (C_out, C_h) and (C_out,); kernels may be 1x1.
        """
        self.make_neutral()
        self.weight1.copy_(first[0].flatten(1))
        self.bias1.copy_(first[1])
        self.weight2.copy_(second[0].flatten(1) / self.static_gain)
        self.bias2.copy_(second[1])

    def experts(self) -> list[Expert]:
        """The n functions from (M, C_in) to (M, C_out)."""
        return [partial(_in_turn, *layers) for layers in zip(self._first(), self._second())]

    def _first(self) -> list[Expert]:
        return [partial(self._activated, *own) for own in zip(self.weight1.unbind(), self.bias1.unbind())]

    def _second(self) -> list[Expert]:
        return [partial(F.linear, weight=own) for own in self.weight2.unbind()]

    def _activated(self, weight: Tensor, bias: Tensor, block: Tensor) -> Tensor:
        return self.act(F.linear(block, weight, bias))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H, W), or (..., C_in) -> (..., C_out)."""
        positions = self._to_positions(x)
        weights, chosen = self.choose(positions)
        if self.between is not None:
            ranks = zip(weights.split(1, 1), chosen.split(1, 1))
            y = torch.stack([self._with_norm(positions, *rank, x) for rank in ranks]).sum(0)
        elif infers_plainly(positions, chosen, self.weight1):
            writers = [partial(_written, *layers) for layers in zip(self._first(), self.weight2.mT)]
            return self._to_map(infer_positions(positions, weights, chosen, writers, self.out_channels, self.bias2), x)
        else:
            y = route_positions(positions, weights, chosen, self.experts())
        y = y + self.bias2.to(y.dtype) if torch.is_grad_enabled() else y.add_(self.bias2.to(y.dtype))
        return self._to_map(y, x)

    def _with_norm(self, positions: Tensor, weights: Tensor, chosen: Tensor, x: Tensor) -> Tensor:
        """One expert per position, with ``between`` between its layers."""
        assert self.between is not None
        hidden = route_positions(positions, torch.ones_like(weights), chosen, self._first())
        hidden = self._to_positions(self.between(self._to_map(hidden, x)))
        return route_positions(hidden, weights, chosen, self._second())

    def _to_positions(self, x: Tensor) -> Tensor:
        return to_positions(x) if self.channel_dim == 1 else x.flatten(0, -2)

    def _to_map(self, positions: Tensor, like: Tensor) -> Tensor:
        if self.channel_dim == 1:
            return to_map(positions, like.shape[2:], like)
        return positions.view(*like.shape[:-1], positions.shape[1])

    def extra_repr(self) -> str:
        hidden = self.weight1.shape[1]
        return f'{self.in_channels}, {hidden}, {self.out_channels}, num_experts={self.num_experts}, top_k={self.top_k}'


def _in_turn(first: Expert, second: Expert, block: Tensor) -> Tensor:
    return second(first(block))


def _written(first: Expert, weight: Tensor, block: Tensor, y: Tensor) -> None:
    torch.mm(first(block), weight, out=y)

"""PositionFFN2d: every position of a map goes to its top-k of n two-layer perceptrons; and a swap that puts it into a net.

Scaling Vision with Sparse Mixture of Experts, Riquelme et al., NeurIPS 2021, https://arxiv.org/abs/2106.05974; experts that
start as copies of a dense one: Sparse Upcycling, Komatsuzaki et al., ICLR 2023, https://arxiv.org/abs/2212.05055

Letters: N batch, M positions of one expert, C_in / C_h / C_out channels, n experts, k experts per position.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import Tensor, nn

from .._registry import build_inner
from ..layers.expert_conv import check_num_experts
from ..layers.expert_gate import ExpertGate
from ..layers.match import SwapError, any_matching
from ..modules import is_plain_conv
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

    Raises:
        ValueError: ``num_experts`` below 1, ``top_k`` not between 1 and ``num_experts``, or not 1 with a tree.
    """

    kernel_size = (1, 1)

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int | None = None,
        num_experts: int = 4,
        top_k: int = 1,
        act_cfg: dict = dict(type='GELU'),
        gate: dict | None = None,
    ) -> None:
        super().__init__()
        check_num_experts(num_experts)
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
        weights = zip(self.weight1.unbind(), self.bias1.unbind(), self.weight2.unbind())
        return [partial(self._expert, *own) for own in weights]

    def _expert(self, weight1: Tensor, bias1: Tensor, weight2: Tensor, block: Tensor) -> Tensor:
        return F.linear(self.act(F.linear(block, weight1, bias1)), weight2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H, W)."""
        positions = to_positions(x)
        weights, chosen = self.choose(positions)
        y = route_positions(positions, weights, chosen, self.experts())
        y = y + self.bias2.to(y.dtype) if torch.is_grad_enabled() else y.add_(self.bias2.to(y.dtype))
        return to_map(y, x.shape[2:], x)

    def extra_repr(self) -> str:
        hidden = self.weight1.shape[1]
        return f'{self.in_channels}, {hidden}, {self.out_channels}, num_experts={self.num_experts}, top_k={self.top_k}'


def swap_ffns(
    module: nn.Module,
    include: Sequence[str] = ('*',),
    names: tuple[str, str] = ('pointwise_conv1', 'pointwise_conv2'),
    act: str = 'act',
    **options,
) -> nn.Module:
    """Replace the perceptrons of a net's blocks by experts, in place, all or nothing.

    A perceptron is two 1x1 convolutions of a block with an activation between them, as in ConvNeXt (with
    ``linear_pw_conv=False``). The experts take the place of the first one, the others become identities. Static weights,
    those that are there and those that a checkpoint brings later, start every expert: the net computes what it did.

    Args:
        module: any built module.
        include: globs (or ``re:`` patterns) of the paths of blocks.
        names: the two convolutions of a block.
        act: the activation of a block.
        options: of :class:`PositionFFN2d`, but for the channels.

    Returns:
        ``module`` itself.

    Raises:
        SwapError: no such block, or one whose two layers are no plain 1x1 convolutions with biases.
    """
    blocks = {path: m for path, m in module.named_modules() if all(hasattr(m, name) for name in names)}
    chosen = any_matching(list(blocks), include)
    if not chosen:
        raise SwapError(
            f'{type(module).__name__} has no block with {names[0]} and {names[1]} that include={list(include)} matches; '
            f'those it has: {", ".join(list(blocks)[:5]) or "none"}'
        )
    for path in chosen:
        _check_block(path, blocks[path], names)
    for path in sorted(chosen):
        _swap_block(blocks[path], names, act, options)
    print_log(f'{len(chosen)} perceptrons -> PositionFFN2d({options})', logger='current')
    return module


@MODELS.register_module(name='PositionFFNs')
def build_position_ffns(
    module: dict,
    include: Sequence[str] = ('*',),
    names: tuple[str, str] = ('pointwise_conv1', 'pointwise_conv2'),
    act: str = 'act',
    num_experts: int = 4,
    top_k: int = 1,
    gate: dict | None = None,
    **injected,
) -> nn.Module:
    """Build a module from a config and make its perceptrons experts; returns the inner module: no wrapper, no key prefix.

    Args:
        module: config of the inner module.
        include, names, act: as in :func:`swap_ffns`.
        num_experts, top_k, gate: of :class:`PositionFFN2d`.

    Returns:
        The inner module.
    """
    return swap_ffns(build_inner(module, injected), include, names, act, num_experts=num_experts, top_k=top_k, gate=gate)


def _check_block(path: str, block: nn.Module, names: tuple[str, str]) -> None:
    for name in names:
        conv = getattr(block, name)
        if not is_plain_conv(conv) or conv.kernel_size != (1, 1) or conv.groups != 1 or conv.bias is None:
            raise SwapError(
                f'{path}.{name} is {conv}, not a plain 1x1 Conv2d with a bias; for ConvNeXt set linear_pw_conv=False'
            )


def _swap_block(block: nn.Module, names: tuple[str, str], act: str, options: dict) -> None:
    first, second = (block.get_submodule(name) for name in names)
    assert isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d)
    ffn = PositionFFN2d(first.in_channels, first.out_channels, second.out_channels, **options)
    ffn.act = block.get_submodule(act)
    assert first.bias is not None and second.bias is not None
    ffn.start_as((first.weight, first.bias), (second.weight, second.bias))
    setattr(block, names[0], ffn.to(first.weight).train(first.training))
    setattr(block, act, nn.Identity())
    setattr(block, names[1], nn.Identity())
    block.register_load_state_dict_pre_hook(_StaticWeights(names))


class _StaticWeights:
    """Turns a dense perceptron in a state dict that is being loaded into a block's experts."""

    def __init__(self, names: tuple[str, str]) -> None:
        self.names = names

    def __call__(self, block: nn.Module, state_dict: dict[str, Tensor], prefix: str, *args) -> None:
        first, second = ((f'{prefix}{name}.weight', f'{prefix}{name}.bias') for name in self.names)
        if not all(key in state_dict for key in (*first, *second)):
            return
        ffn = block.get_submodule(self.names[0])
        assert isinstance(ffn, PositionFFN2d)
        taken = [state_dict.pop(key) for key in (*first, *second)]
        ffn.start_as((taken[0], taken[1]), (taken[2], taken[3]))
        state_dict.update({f'{prefix}{self.names[0]}.{key}': value for key, value in ffn.state_dict().items()})

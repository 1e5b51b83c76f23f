"""A convolution whose norm, bias and filter scale stay outside of its kernel, so that others may hold the same one."""

import torch
from torch import Tensor, nn

from ..layers import ChildConv2d
from ..modules import conv_arguments


class ScaledConv2d(nn.Module):
    """``conv(x) * scale + shift``, a factor and a summand per filter, with a kernel that other convolutions hold as well.

    Args:
        conv (nn.Conv2d): a plain one, or a child that computes with its parent's kernel; shares its ``weight``.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = nn.Conv2d(**{**conv_arguments(conv), 'bias': False}, device='meta')
        self.conv.weight = conv.weight
        per_filter = torch.ones_like(conv.weight[:, 0, :1, :1])
        scale = 1 + conv.filter_scale[:, 0] if isinstance(conv, ChildConv2d) else per_filter
        shift = 0 * per_filter if conv.bias is None else conv.bias.view(-1, 1, 1)
        self.scale = nn.Parameter(scale.detach().clone(), requires_grad=False)  # (C_out, 1, 1)
        self.shift = nn.Parameter(shift.detach().clone(), requires_grad=False)
        self.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        if torch.jit.is_tracing():  # addcmul is exported with a product by 1, which is in the way of other runtimes' fusions
            return self.conv(x) * self.scale + self.shift
        return torch.addcmul(self.shift, self.conv(x), self.scale)

    @torch.no_grad()
    def then(self, factor: Tensor, shift: Tensor) -> None:
        """Let ``y * factor + shift`` follow, (C_out,) each in double precision."""
        factor, shift = factor.view(-1, 1, 1), shift.view(-1, 1, 1)
        self.scale.copy_(self.scale.double() * factor)
        self.shift.copy_(self.shift.double() * factor + shift)

    def to_plain(self) -> nn.Conv2d:
        """The convolution with the shift as its bias: the same where the scale is 1."""
        if self.shift.any():
            self.conv.bias = nn.Parameter(self.shift.flatten(), requires_grad=False)
        return self.conv


def lent_kernels(module: nn.Module) -> dict[int, Tensor]:
    """What ``deepcopy`` takes as its memo to copy ``module`` without the kernels that its :class:`ScaledConv2d` share."""
    return {id(m.conv.weight): m.conv.weight for m in module.modules() if isinstance(m, ScaledConv2d)}

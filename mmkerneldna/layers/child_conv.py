"""The child convolution of KernelDNA: a parent's kernel, an input gate and static modulations.

KernelDNA: Dynamic Kernel Sharing via Decoupled Naive Adapters, Huang et al., https://arxiv.org/abs/2503.23379

Shapes: N batch, C_in / C_out channels, G groups, k kernel size.
"""
from typing import List, Optional

import torch
from torch import Tensor, nn

from ..modules import count_parameters
from .gated_conv import can_recompute, gated_conv2d, modulation
from .input_gate import InputGate


def modulate_kernel(weight: Tensor, filter_scale: Tensor, spatial_scale: Optional[Tensor]) -> Tensor:
    """W * (1 + filter_scale) * (1 + spatial_scale).

    The two small factors are joined first: the kernel itself is read and written once.

    Args:
        weight (Tensor): (C_out, C_in / G, k, k).
        filter_scale (Tensor): (C_out, 1, 1, 1).
        spatial_scale (Tensor, optional): (1, 1, k, k).

    Returns:
        Tensor: (C_out, C_in / G, k, k).
    """
    return weight * modulation(filter_scale, spatial_scale)


class ChildConv2d(nn.Conv2d):
    """Convolution that borrows its kernel: ``y = conv2d(g(x) * x, W_parent * (1 + f) * (1 + s))`` (paper, section 3).

    ``weight`` *is* the parent's ``Parameter``. What rewrites kernels in place of modules (``mmcv.cnn.fuse_conv_bn``,
    mmengine's ``efficient_conv_bn_eval``) therefore acts on this conv as on any other, and does not reach it through
    the parent. While the two are tied, a ``state_dict`` holds the kernel once, under the parent's name.

    Args:
        parent (nn.Conv2d): owner of the kernel; gives ``in_channels``, ``out_channels``, ``kernel_size``, ``groups``.
        stride, padding, dilation, padding_mode: the child's own, as in ``nn.Conv2d``.
        bias (bool): a bias of its own.
        reduction (int): of the input gate.
        norm_cfg (dict, optional): norm of the input gate.
    """

    def __init__(self,
                 parent: nn.Conv2d,
                 stride=1,
                 padding=0,
                 dilation=1,
                 bias: bool = False,
                 padding_mode: str = 'zeros',
                 reduction: int = 4,
                 norm_cfg: Optional[dict] = dict(type='BN')) -> None:
        # On 'meta' the kernel that nn.Conv2d makes, to be replaced at once, costs neither memory nor random numbers.
        super().__init__(parent.in_channels, parent.out_channels, parent.kernel_size, stride, padding, dilation,
                         parent.groups, False, padding_mode, device='meta')
        self.weight = parent.weight
        self._parent = (parent, )  # in a tuple: a reference, not a submodule
        kernel = dict(device=parent.weight.device, dtype=parent.weight.dtype)
        self.filter_scale = nn.Parameter(torch.zeros(self.out_channels, 1, 1, 1, **kernel))
        self.spatial_scale = None
        if self.kernel_size != (1, 1):
            self.spatial_scale = nn.Parameter(torch.zeros(1, 1, *self.kernel_size, **kernel))
        if bias:
            self.bias = nn.Parameter(torch.zeros(self.out_channels, **kernel))
        self.gate = InputGate(self.in_channels, reduction, norm_cfg).to(**kernel)
        # torch.fx takes modules for leaves by this prefix, and mmengine's efficient_conv_bn_eval raises KeyError in a net
        # whose BN follows a conv that is none. On the instance: the class keeps its own, by which it is pickled.
        self.__module__ = nn.Conv2d.__module__

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, parent: nn.Conv2d, **gate_cfg) -> 'ChildConv2d':
        """Child in the place of ``conv``: its stride, padding, dilation, bias and mode, the kernel of ``parent``."""
        child = cls(parent, conv.stride, conv.padding, conv.dilation, conv.bias is not None, conv.padding_mode,
                    **gate_cfg)
        if conv.bias is not None:
            child.bias = conv.bias
        return child.train(conv.training)

    @property
    def tied(self) -> bool:
        """Whether the kernel still is the parent's; false once either was rewritten, by fusing it for instance."""
        return self.weight is self.parent.weight

    @property
    def parent(self) -> nn.Conv2d:
        """Owner of the kernel."""
        return self._parent[0]

    def own_size(self) -> int:
        """Elements of the parameters that only this conv has: all but a borrowed kernel."""
        return count_parameters(self) - (self.weight.numel() if self.tied else 0)

    def deployed_size(self) -> int:
        """Elements of the parameters after :meth:`to_plain`, the gate included, before a norm is folded."""
        scales = (self.filter_scale, self.spatial_scale)
        return count_parameters(self) - sum(s.numel() for s in scales if s is not None)

    @torch.no_grad()
    def to_plain(self) -> nn.Conv2d:
        """The conv behind the gate with the modulations baked into a kernel of its own: ``child(x) = plain(g(x) * x)``."""
        conv = nn.Conv2d(self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, self.dilation,
                         self.groups, self.bias is not None, self.padding_mode, device='meta')
        scales = [s for s in (self.filter_scale, self.spatial_scale) if s is not None]
        kernel = self.weight.double()  # one rounding, at the end
        for scale in scales:
            kernel = kernel * (1 + scale.double())
        conv.weight = nn.Parameter(kernel.to(self.weight.dtype))
        if self.bias is not None:
            conv.bias = nn.Parameter(self.bias.clone())
        return conv.train(self.training)

    def adapter_parameters(self) -> List[nn.Parameter]:
        """Parameters of the adapter: gate and static modulations, neither kernel nor bias."""
        scales = [self.filter_scale] + ([] if self.spatial_scale is None else [self.spatial_scale])
        return scales + list(self.gate.parameters())

    def modulated_weight(self) -> Tensor:
        """The kernel this conv computes with, (C_out, C_in / G, k, k)."""
        return modulate_kernel(self.weight, self.filter_scale, self.spatial_scale)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
        # Takes the weight as an argument: efficient_conv_bn_eval calls with one that carries the BN factor.
        gate = self.gate(input)
        if self.padding_mode == 'zeros' and can_recompute(input, self.padding):
            return gated_conv2d(input, gate, weight, self.filter_scale, self.spatial_scale, bias, self.stride, self.padding,
                                self.dilation, self.groups)
        weight = modulate_kernel(weight, self.filter_scale, self.spatial_scale)
        return super()._conv_forward(input * gate, weight, bias)

    def reset_parameters(self) -> None:
        """Nothing to draw: the kernel is the parent's, modulations start at zero, the gate draws its own."""

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.tied:
            del destination[prefix + 'weight']

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys,
                              error_msgs) -> None:
        key = prefix + 'weight'
        if not self.tied:
            super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys,
                                          error_msgs)
            return
        # A kernel under the child's name (a static net's checkpoint) must not overwrite the parent's.
        foreign = state_dict.pop(key, None)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys,
                                      error_msgs)
        if key in missing_keys:
            missing_keys.remove(key)
        if foreign is not None and strict:
            unexpected_keys.append(key)

    def extra_repr(self) -> str:
        return super().extra_repr() + ', borrowed kernel'

"""The child convolution of KernelDNA: a parent's kernel, an input gate and static modulations.

KernelDNA: Dynamic Kernel Sharing via Decoupled Naive Adapters, Huang et al., https://arxiv.org/abs/2503.23379

Shapes: N batch, C_in / C_out channels, G groups, k kernel size.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..modules import conv_arguments, count_parameters
from .drop_in import PaddingMode, at_least_fp32
from .gated_conv import can_recompute, gated_conv2d, modulate_kernel
from .input_gate import InputGate
from .per_sample import pair


@torch.no_grad()
def check_filters(kernel: Tensor) -> None:
    """Refuse a kernel with a filter of zeros: :func:`filter_factor` can't tell what it was multiplied by.

    Raises:
        UsageError: names the filter and the way out.
    """
    empty = (kernel.flatten(1) == 0).all(1)
    if empty.any():
        raise UsageError(
            f'filter {empty.nonzero()[0].item()} of a borrowed kernel is zero, so the factor of the norm behind '
            "the child can't be read off it and can't reach the child's low-rank residual; fold norms with "
            'mmkerneldna.deploy.deploy, or leave efficient_conv_bn_eval and fuse_conv_bn out'
        )


def filter_factor(scaled: Tensor, kernel: Tensor) -> Tensor:
    """What each filter of ``kernel`` was multiplied by to give ``scaled``, (C_out, 1).

    The projection of one on the other: exact to rounding where there is such a factor, gradients included.
    """
    scaled, kernel = at_least_fp32(scaled).flatten(1), at_least_fp32(kernel).flatten(1)
    return (scaled * kernel).sum(1, keepdim=True) / kernel.square().sum(1, keepdim=True)


class ChildConv2d(nn.Conv2d):
    """Convolution that borrows its kernel: ``y = conv2d(g(x) * x, W_parent * (1 + f) * (1 + s))`` (paper, section 3).

    ``weight`` *is* the parent's ``Parameter``. What rewrites kernels in place of modules (``mmcv.cnn.fuse_conv_bn``,
    mmengine's ``efficient_conv_bn_eval``) therefore acts on this conv as on any other, and does not reach it through
    the parent. In a ``state_dict`` the kernel stands as in any conv's; where a tree holds child and parent,
    :func:`mmkerneldna.sharing.share_kernels` sees to it that it is held once, under the parent's name. A child whose parent
    is gone from the net so owns its kernel, in memory and in the file.

    With ``residual_rank`` r the kernel is ``W_parent * (1 + f) * (1 + s) + B A``, ``residual_b`` (C_out, r) times
    ``residual_a`` (r, C_in / G * k * k) (not in the paper; baked like the modulations, so free when deployed). B starts at
    zero. Where a norm's factor is multiplied into the kernel, the residual takes it along.

    Args:
        parent (nn.Conv2d): owner of the kernel; gives ``in_channels``, ``out_channels``, ``kernel_size``, ``groups``.
        stride, padding, dilation, padding_mode: the child's own, as in ``nn.Conv2d``.
        bias (bool): a bias of its own.
        reduction (int): of the input gate.
        norm_cfg (dict, optional): norm of the input gate.
        residual_rank (int): r of the low-rank residual, 0 for none.
        spatial_scale (bool): have a ``spatial_scale``, None otherwise. A 1x1 child has none.

    Raises:
        ValueError: ``residual_rank`` below 0 or above the rank of the kernel as a matrix.
    """

    def __init__(
        self,
        parent: nn.Conv2d,
        stride=1,
        padding=0,
        dilation=1,
        bias: bool = False,
        padding_mode: PaddingMode = 'zeros',
        reduction: int = 4,
        norm_cfg: dict | None = dict(type='BN'),
        residual_rank: int = 0,
        spatial_scale: bool = True,
    ) -> None:
        # On 'meta' the kernel that nn.Conv2d makes, to be replaced at once, costs neither memory nor random numbers.
        super().__init__(
            parent.in_channels,
            parent.out_channels,
            pair(parent.kernel_size),
            stride,
            padding,
            dilation,
            parent.groups,
            False,
            padding_mode,
            device='meta',
        )
        self.weight = parent.weight
        self._parent = (parent,)  # in a tuple: a reference, not a submodule
        kernel: dict[str, Any] = dict(device=parent.weight.device, dtype=parent.weight.dtype)
        self.filter_scale = nn.Parameter(torch.zeros(self.out_channels, 1, 1, 1, **kernel))
        self.spatial_scale = None
        if spatial_scale and self.kernel_size != (1, 1):
            self.spatial_scale = nn.Parameter(torch.zeros(1, 1, *self.kernel_size, **kernel))
        if bias:
            self.bias = nn.Parameter(torch.zeros(self.out_channels, **kernel))
        self.gate = InputGate(self.in_channels, reduction, norm_cfg).to(**kernel)
        self.residual_b: nn.Parameter | None = None
        self.residual_a: nn.Parameter | None = None
        if residual_rank:
            self._add_residual(residual_rank, kernel)
        # torch.fx takes modules for leaves by this prefix, and mmengine's efficient_conv_bn_eval raises KeyError in a net
        # whose BN follows a conv that is none. On the instance: the class keeps its own, by which it is pickled.
        self.__module__ = nn.Conv2d.__module__

    def _add_residual(self, rank: int, kernel: dict) -> None:
        rows, columns = self.out_channels, self.weight[0].numel()
        if not 1 <= rank <= min(rows, columns):
            raise ValueError(
                f'residual_rank={rank} must lie between 0 and {min(rows, columns)}, the rank of the kernel '
                f'{tuple(self.weight.shape)} as a {rows} x {columns} matrix'
            )
        self.residual_b = nn.Parameter(torch.zeros(rows, rank, **kernel))
        self.residual_a = nn.Parameter(torch.randn(rank, columns, **kernel) * columns**-0.5)

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, parent: nn.Conv2d, **options) -> 'ChildConv2d':
        """Child in the place of ``conv``: its stride, padding, dilation, bias and mode, the kernel of ``parent``."""
        child = cls(parent, conv.stride, conv.padding, conv.dilation, conv.bias is not None, conv.padding_mode, **options)
        if conv.bias is not None:
            child.bias = conv.bias
        return child.train(conv.training)

    @property
    def tied(self) -> bool:
        """Whether the kernel still is the parent's; false once either was rewritten, by fusing it for instance."""
        kernel = self._parameters.get('weight')
        return kernel is not None and kernel is self.parent._parameters.get('weight')

    @property
    def parent(self) -> nn.Conv2d:
        """Owner of the kernel; no longer part of the net if it was replaced there."""
        return self._parent[0]

    def own_size(self) -> int:
        """Elements of the parameters that only this conv has: all but a borrowed kernel."""
        return count_parameters(self) - (self.weight.numel() if self.tied else 0)

    def deployed_size(self) -> int:
        """Elements of the parameters after :meth:`to_plain`, the gate included, before a norm is folded."""
        return count_parameters(self) - sum(p.numel() for p in self._baked_parameters())

    def _baked_parameters(self) -> list[nn.Parameter]:
        parts = (self.filter_scale, self.spatial_scale, self.residual_b, self.residual_a)
        return [part for part in parts if part is not None]

    @torch.no_grad()
    def to_plain(self) -> nn.Conv2d:
        """The conv behind the gate with all of the kernel baked into one of its own: ``child(x) = plain(g(x) * x)``."""
        conv = nn.Conv2d(**conv_arguments(self), device='meta')
        parts = (self.spatial_scale, self.residual_b, self.residual_a)
        doubles = (None if part is None else part.double() for part in parts)  # one rounding, at the end
        kernel = modulate_kernel(self.weight.double(), self.filter_scale.double(), *doubles)
        conv.weight = nn.Parameter(kernel.to(self.weight.dtype))
        if self.bias is not None:
            conv.bias = nn.Parameter(self.bias.clone())
        return conv.train(self.training)

    def adapter_parameters(self) -> list[nn.Parameter]:
        """Parameters of the adapter: gate, static modulations and residual, neither kernel nor bias."""
        return self._baked_parameters() + list(self.gate.parameters())

    def modulated_weight(self) -> Tensor:
        """The kernel this conv computes with, (C_out, C_in / G, k, k)."""
        return modulate_kernel(self.weight, self.filter_scale, self.spatial_scale, self.residual_b, self.residual_a)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        return self._gated_conv(input, self.weight, self.bias, self.residual_b)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # efficient_conv_bn_eval calls this, with a weight that carries the norm's factor.
        residual_b: Tensor | None = self.residual_b
        if residual_b is not None and weight is not self.weight:
            check_filters(self.weight)
            residual_b = residual_b * filter_factor(weight, self.weight).to(residual_b.dtype)
        return self._gated_conv(input, weight, bias, residual_b)

    def _gated_conv(self, input: Tensor, weight: Tensor, bias: Tensor | None, residual_b: Tensor | None) -> Tensor:
        if not torch.compiler.is_compiling():
            self._check_parent()
        gate = self.gate(input)
        if self.padding_mode == 'zeros' and can_recompute(input, self.padding):
            return gated_conv2d(
                input,
                gate,
                weight,
                self.filter_scale,
                self.spatial_scale,
                bias,
                self.stride,
                self.padding,
                self.dilation,
                self.groups,
                residual_b,
                self.residual_a,
            )
        weight = modulate_kernel(weight, self.filter_scale, self.spatial_scale, residual_b, self.residual_a)
        return super()._conv_forward(input * gate, weight, bias)

    def _check_parent(self) -> None:
        """Pruning and parametrizations turn a ``weight`` into a tensor made anew from another parameter, which can't be tied.

        Raises:
            UsageError: the parent has such a kernel, and this child none of its own.
        """
        if 'weight' in self._parameters and 'weight' not in self.parent._parameters:
            raise UsageError(
                'the parent of a ChildConv2d computes its kernel at run time now (pruning, spectral_norm, '
                "weight_norm or another parametrization), which a child can't borrow: make it permanent first "
                '(torch.nn.utils.prune.remove, parametrize.remove_parametrizations), or leave this conv out of '
                'the sharing plan'
            )

    def _apply(self, fn, recurse: bool = True) -> nn.Module:
        # .to() keeps a Parameter, to_empty() and moves from or to 'meta' make a new one per module: tie them again.
        tied, from_meta = self.tied, self.weight.is_meta
        super()._apply(fn, recurse)
        if tied:  # the parent comes later and finds its kernel converted
            self.parent._parameters['weight'] = self._parameters['weight']
        elif (from_meta or self.weight.is_meta) and self.weight.device == self.parent.weight.device:
            # the parent came first; a kernel on 'meta' has no values to lose
            self._parameters['weight'] = cast(nn.Parameter, self.parent.weight)
        return self

    def __setattr__(self, name: str, value) -> None:
        if name == 'weight' and isinstance(value, nn.Parameter):
            self._rescale_residual(value)
        super().__setattr__(name, value)

    @torch.no_grad()
    def _rescale_residual(self, kernel: nn.Parameter) -> None:
        """Before ``kernel`` replaces the weight: one that is the old times a factor per filter, as mmcv's fuse_conv_bn makes
        it, changes the size of the residual alike."""
        old, residual_b = self._parameters.get('weight'), self._parameters.get('residual_b')
        if residual_b is None or old is None or kernel is old or kernel.is_meta or old.is_meta or kernel.shape != old.shape:
            return
        factor = filter_factor(kernel, old)
        rescaled = factor.nan_to_num().view(-1, 1, 1, 1) * old
        if (kernel - rescaled).norm() <= 4 * torch.finfo(kernel.dtype).eps * kernel.norm():
            check_filters(old)
            residual_b.mul_(factor.to(residual_b.dtype))

    def reset_parameters(self) -> None:
        """Nothing to draw: the kernel is the parent's, modulations start at zero, the gate draws its own."""

    def extra_repr(self) -> str:
        return super().extra_repr() + ', borrowed kernel'

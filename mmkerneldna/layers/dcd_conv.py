"""DCD: dynamic channel fusion by matrix decomposition.

Revisiting Dynamic Convolution via Matrix Decomposition, Li et al., ICLR 2021, https://arxiv.org/abs/2103.08756

Letters: N batch, C_in / C_out channels, k kernel side, L latent channels, L_k latent taps, H W input size.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from .drop_in import PaddingMode
from .expert_conv import hidden_channels, init_attention, pad_for_mode
from .per_sample import per_sample_conv2d
from .pooled_norm import build_pooled_norm, pooled_norm
from .static_start import StaticStart


class Form(NamedTuple):
    """How a family of the released nets chooses the widths of a layer."""

    reduction: int  # of the fusion branch
    linear_std: float | None  # deviation of its linear layers at the start; None for torch's


FORMS = dict(resnet=Form(16, None), mobilenet=Form(8, 0.01))


def latent_width(form: str, in_channels: int, out_channels: int, pool_size: int) -> int:
    """L of a layer that is not depthwise, as in the released nets.

    ResNets: the root of the pooled features. MobileNetV2: features or output channels, whichever are fewer, over 8 in an
    expanding convolution and over 2 in any other, doubled until L^2 is at most twice the features; at least 4.
    """
    features = in_channels * pool_size**2
    if form == 'resnet':
        return math.isqrt(features)
    divisor = 8 if in_channels < out_channels else 2
    while min(features // divisor, out_channels // divisor) ** 2 > 2 * features:
        divisor *= 2
    return max(min(features // divisor, out_channels // divisor), 4)


class Fusion(NamedTuple):
    """The dynamic coefficients of a sample."""

    scale: Tensor  # Lambda(x), (N, C_out, 1, 1), each in (0, 2)
    phi: Tensor  # Phi(x), (N, L, L), of a depthwise layer (N, L, L_k)


class FusionBranch(nn.Module):
    """Average pool -> linear -> self gate -> two linear heads (paper, figure 2)."""

    def __init__(self, channels: int, out_channels: int, hidden: int, phi_shape: tuple[int, int], pool_size: int) -> None:
        super().__init__()
        self.pool_size, self.phi_shape = pool_size, phi_shape
        self.fc = nn.Linear(channels * pool_size**2, hidden, bias=False)
        self.self_gate = nn.Linear(hidden, hidden, bias=False)
        self.phi_fc = nn.Linear(hidden, math.prod(phi_shape), bias=False)
        self.scale_fc = nn.Linear(hidden, out_channels, bias=False)

    def forward(self, x: Tensor) -> Fusion:
        """(N, C_in, H, W) -> Lambda and Phi."""
        hidden = self.fc(F.adaptive_avg_pool2d(x, self.pool_size).flatten(1))
        hidden = hidden * _gate(self.self_gate(hidden))
        phi = self.phi_fc(hidden).unflatten(1, self.phi_shape)
        return Fusion(_gate(self.scale_fc(hidden))[..., None, None], phi)


def fuse_channels(latent: Tensor, phi: Tensor) -> Tensor:
    """Phi(x) on the latent channels of every pixel: (N, L, H, W), (N, L, L) -> (N, L, H, W)."""
    return torch.bmm(phi, latent.flatten(2).to(phi.dtype)).view(latent.shape)


def centre_tap(conv: nn.modules.conv._ConvNd, x: Tensor) -> Tensor:
    """The part of ``x`` that lies under the centre of the kernel, before the stride.

    With padding for an unchanged size that is ``x`` itself. An even kernel has its centre on the left.
    """
    margins = list(conv._reversed_padding_repeated_twice) if conv.padding_mode == 'zeros' else [0] * 4
    for axis, (size, dilation) in enumerate(zip(reversed(conv.kernel_size), reversed(conv.dilation))):
        before = dilation * ((size - 1) // 2)
        margins[2 * axis] -= before
        margins[2 * axis + 1] -= dilation * (size - 1) - before
    return F.pad(x, margins) if any(margins) else x


@MODELS.register_module()
class DCDConv2d(StaticStart, nn.modules.conv._ConvNd):
    """``W(x) = Lambda(x) W_0 + P Phi(x) Q^T`` (paper, equation 6).

    A kernel of k x k has the fusion at its centre (the spatial factor R of section 4.3 is then one-hot, L_k = 1):
    ``y = Lambda(x) (W_0 * x) + P (norm(Phi(x) h) + h)`` with ``h = norm(Q^T x)``. The two norms and the identity beside
    Phi are in the released code and in the published parameters; the paper's formula leaves them out.

    A depthwise kernel has no channels to fuse, but taps: ``W(x) = Lambda(x) W_0 + P Phi(x) R^T`` with W_0 as a (C, k^2)
    matrix, P (C, L), Phi(x) (L, L_k) and R (k^2, L_k), L_k half of the taps (paper, section 4.2, without norms). The
    released nets keep their depthwise convolutions static.

    With the kernel of a static checkpoint as W_0, P starts at zero and Lambda at one: the layer is then the static convolution.

    It is no ``nn.Conv2d``, because its output is more than one convolution: ``mmcv.cnn.fuse_conv_bn``, which would fold
    the following BN into W_0 alone, leaves it as it is.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, bias, padding_mode: as in ``nn.Conv2d``.
        groups (int): 1, or for a depthwise layer that of its input and output channels.
        form (str): ``'resnet'`` or ``'mobilenet'``, whose rules of the released code give the next three. The
            variant ``'dcd'`` takes the net's. Defaults to ``'resnet'``.
        latent_channels (int, optional): L. Defaults to :func:`latent_width`; of a depthwise layer to
            ``C / 2**int(log2(sqrt(C)))``, rounded down (the paper).
        pool_size (int, optional): side of the pooled map in front of the fusion branch. Defaults to 1, in the mobile form to 2
            where the channels expand. The basic blocks of the paper's ResNet-18 take 2.
        reduction (int, optional): max(pooled features, L^2) over the hidden width of the fusion branch, which is at least 4.
            Defaults to 16, in the mobile form to 8 (the released code; its published weights take 16).
        norm_cfg (dict, optional): the two norms, BN (the paper), SyncBN, GN or None; a depthwise layer has none.

    Raises:
        ValueError: an unknown ``form``, ``groups`` between one and the channels, L or ``pool_size`` below 1,
            ``reduction`` out of range, or a layer norm.
    """

    # 3x3 and 1x1 convolutions of the residual branches; shortcuts, stems and depthwise convolutions stay static
    # (released code), and so does the block without expansion of MobileNetV2
    paper_patterns = {
        'ResNet': ['layer*.conv*'],
        # mmdet's names, then mmseg's
        'MobileNetV2': ['layer[2-7].*.expand_conv.*', 'layer[2-7].*.linear_conv.*', 'layer[2-7].*.conv.[02].conv'],
    }

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
        form: str = 'resnet',
        latent_channels: int | None = None,
        pool_size: int | None = None,
        reduction: int | None = None,
        norm_cfg: dict | None = dict(type='BN'),
    ) -> None:
        if groups != 1 and not groups == in_channels == out_channels:
            raise ValueError(
                f'DCDConv2d fuses all channels (groups=1) or the taps of a depthwise kernel, and has no form for '
                f'groups={groups} with {in_channels} and {out_channels} channels: keep this convolution static'
            )
        if form not in FORMS:
            raise ValueError(f'form={form!r} of a DCDConv2d must be one of {", ".join(map(repr, FORMS))}')
        pairs = [nn.modules.utils._pair(value) for value in (kernel_size, stride, dilation)]
        padding = padding if isinstance(padding, str) else nn.modules.utils._pair(padding)
        super().__init__(
            in_channels, out_channels, pairs[0], pairs[1], padding, pairs[2], False, (0, 0), groups, bias, padding_mode
        )
        self.form = form
        if pool_size is None:
            pool_size = 2 if form == 'mobilenet' and in_channels < out_channels else 1
        latent = latent_channels if latent_channels is not None else self._default_latent(pool_size)
        if latent < 1 or pool_size < 1:
            raise ValueError(f'latent_channels={latent_channels} and pool_size={pool_size} must be at least 1')
        phi_shape = (latent, max(1, math.prod(pairs[0]) // 2) if self.depthwise else latent)
        default = FORMS[form].reduction
        hidden = hidden_channels(
            max(in_channels * pool_size**2, math.prod(phi_shape)), default if reduction is None else reduction, default, 4
        )
        self.fusion = FusionBranch(in_channels, out_channels, hidden, phi_shape, pool_size)
        if self.depthwise:
            self.p: nn.Linear | nn.Conv2d = nn.Linear(latent, out_channels, bias=False)
            self.r = nn.Linear(phi_shape[1], math.prod(pairs[0]), bias=False)
        else:
            # In this order fuse_conv_bn folds norm_q into q and finds no convolution in front of norm_phi.
            self.q = nn.Conv2d(in_channels, latent, 1, pairs[1], bias=False)
            self.norm_q = self._build_norm(norm_cfg, latent)
            self.norm_phi = self._build_norm(norm_cfg, latent)
            self.p = nn.Conv2d(latent, out_channels, 1, bias=False)
        self.init_weights()

    @property
    def depthwise(self) -> bool:
        """Whether taps are fused, not channels."""
        return self.groups > 1

    def _default_latent(self, pool_size: int) -> int:
        if self.depthwise:
            return self.in_channels // 2 ** int(math.log2(math.sqrt(self.in_channels)))
        return latent_width(self.form, self.in_channels, self.out_channels, pool_size)

    @staticmethod
    def _build_norm(norm_cfg, channels):
        norm = build_pooled_norm(norm_cfg, channels)
        if isinstance(norm, nn.LayerNorm):
            raise ValueError(f'norm_cfg={norm_cfg} cannot normalise the maps of DCDConv2d: use BN, SyncBN, GN or None')
        return norm

    def init_weights(self) -> None:
        """Kaiming-normal W_0, P and Q (fan out), zero bias; the linear layers as released."""
        nn.init.kaiming_normal_(self.weight, mode='fan_out', nonlinearity='relu')
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        if not self.depthwise:
            init_attention([self.q, self.p])
        std = FORMS[self.form].linear_std
        if std is not None:
            for layer in (m for m in self.fusion.modules() if isinstance(m, nn.Linear)):
                nn.init.normal_(layer.weight, std=std)

    def seed(self, kernel: Tensor, bias: Tensor | None) -> dict[str, Tensor | None]:
        """See :class:`.static_start.StaticStart`."""
        nn.init.zeros_(self.p.weight)
        nn.init.zeros_(self.fusion.scale_fc.weight)
        return dict(weight=kernel, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        fusion = self.fusion(x)
        x, padding = pad_for_mode(self, x)
        if self.depthwise:
            return per_sample_conv2d(x, self._kernels(fusion), self.bias, self.stride, padding, self.dilation, self.groups)
        static = F.conv2d(x, self.weight, None, self.stride, padding, self.dilation)
        latent = pooled_norm(self.norm_q, self.q(centre_tap(self, x)), self.training)
        latent = pooled_norm(self.norm_phi, fuse_channels(latent, fusion.phi), self.training) + latent
        y = static * fusion.scale + self.p(latent)
        return y if self.bias is None else y + self.bias.to(y.dtype).view(-1, 1, 1)

    def _kernels(self, fusion: Fusion) -> Tensor:
        """Those of a depthwise layer, (N, C, 1, k, k)."""
        residual = self.p.weight @ fusion.phi @ self.r.weight.t()  # (N, C, k * k)
        return self.weight * fusion.scale.unsqueeze(-1) + residual.unflatten(2, self.kernel_size).unsqueeze(2)


def _gate(x: Tensor) -> Tensor:
    """Hard sigmoid stretched to (0, 2): one at zero."""
    return F.relu6(x + 3) / 3

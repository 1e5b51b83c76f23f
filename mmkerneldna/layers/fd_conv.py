"""FDConv: a kernel split by frequency, modulated element by element, on an input modulated by frequency band.

Frequency Dynamic Convolution for Dense Image Prediction, Chen et al., CVPR 2025, https://arxiv.org/abs/2503.18783

Letters: N batch, C_in / C_out channels, g groups, k kernel side, n frequency groups, H W input size.

Where this differs from the authors' code (Linwei-Chen/FDConv), and why:

- The parameter is the kernel, and its spectrum is taken in every forward pass, as their ``convert_param=False`` does. The two
  differ by a linear bijection, but so the budget is exactly that of the convolution (a stored half spectrum keeps redundant
  numbers) and the kernel of a static checkpoint loads as it is.
- A frequency and its mirror image always fall into the same group, else a group has no real kernel of its own.
- Bands are cut at the size of the feature map, not by a 64 x 64 mask that is scaled to it.
  ``released=True`` takes back these two, for converted checkpoints.
- Grouped convolutions are possible: the spectrum is that of the (C_out k) x (C_in/g k) matrix.
"""

import math

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from .drop_in import PaddingMode, copy_geometry
from .expert_conv import check_num_experts, hidden_channels, pad_for_mode
from .frequencies import CUTOFFS, frequency_groups, modulate_bands, released_groups, scale_frequencies
from .per_sample import assembled_conv2d
from .pooled_norm import build_pooled_norm, pooled_norm
from .static_start import StaticStart

#: Groups the authors use for detection and segmentation.
NUM_GROUPS = 64
#: Modulations start as good as one.
SMALL = 1e-6


class StarReLU(nn.Module):
    """``s relu(x)^2 + b`` with learned s and b (MetaFormer Baselines, https://arxiv.org/abs/2210.13452)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return self.scale * F.relu(x).square() + self.bias


class GlobalModulation(nn.Module):
    """Global branch of the kernel spatial modulation: factors along each axis of the kernel, each ``2 sigmoid``.

    Linear -> norm -> StarReLU, then one linear layer per axis: input channels, output channels (not for depthwise layers),
    kernel positions (not for 1x1 kernels) and frequency groups.
    """

    def __init__(self, conv: nn.Module, num_groups: int, hidden: int, norm_cfg: dict | None) -> None:
        super().__init__()
        depthwise = conv.in_channels == conv.groups == conv.out_channels
        positions = math.prod(conv.kernel_size)
        self.fc = nn.Linear(conv.in_channels, hidden, bias=False)
        self.norm = build_pooled_norm(norm_cfg, hidden)
        self.act = StarReLU()
        self.channel_fc = nn.Linear(hidden, conv.in_channels)
        self.filter_fc = None if depthwise else nn.Linear(hidden, conv.out_channels)
        self.spatial_fc = None if positions == 1 else nn.Linear(hidden, positions)
        self.frequency_fc = nn.Linear(hidden, num_groups)

    def init_weights(self) -> None:
        """Every factor starts as good as one."""
        nn.init.kaiming_normal_(self.fc.weight, mode='fan_out', nonlinearity='relu')
        for head in self._heads():
            if head is not None:
                nn.init.normal_(head.weight, std=SMALL)
                nn.init.zeros_(head.bias)

    def make_neutral(self) -> None:
        """Every factor is one for every input."""
        for head in self._heads():
            if head is not None:
                nn.init.zeros_(head.weight)
                nn.init.zeros_(head.bias)

    def _heads(self) -> list[nn.Linear | None]:
        return [self.channel_fc, self.filter_fc, self.spatial_fc, self.frequency_fc]

    def forward(self, pooled: Tensor) -> list[Tensor | None]:
        """(N, C_in) -> factors (N, C_in), (N, C_out), (N, k * k), (N, n); None where there is no such axis."""
        hidden = self.act(pooled_norm(self.norm, self.fc(pooled)[:, :, None, None], self.training)).flatten(1)
        return [None if head is None else 2 * head(hidden).sigmoid() for head in self._heads()]


class LocalModulation(nn.Module):
    """Local branch: a factor for every element of the kernel, from the neighbouring channels of the pooled input.

    LayerNorm -> 1-D convolution over the channels, with one filter per element of a filter's (k, k) slice -> ``2 sigmoid``.
    """

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        # neighbours grow with the logarithm of the channels, as in ECA-Net (https://arxiv.org/abs/1910.03151)
        self.neighbours = int(round(math.log2(conv.in_channels) / 2 + 0.5) // 2 * 2 + 1)
        self.groups, self.kernel_size = conv.groups, conv.kernel_size
        self.norm = nn.LayerNorm(conv.in_channels)
        self.filters = nn.Parameter(torch.full((conv.out_channels, math.prod(conv.kernel_size), self.neighbours), SMALL))

    def forward(self, pooled: Tensor) -> Tensor:
        """(N, C_in) -> (N, C_out, C_in/g, k, k)."""
        reach = self.neighbours // 2
        windows = F.pad(self.norm(pooled), (reach, reach)).unfold(1, self.neighbours, 1)
        windows = windows.unflatten(1, (self.groups, -1))  # (N, g, C_in/g, neighbours)
        filters = self.filters.to(windows.dtype).unflatten(0, (self.groups, -1))  # (g, C_out/g, k * k, neighbours)
        logits = torch.einsum('ngis,gops->ngoip', windows, filters)
        return 2 * logits.flatten(1, 2).unflatten(-1, self.kernel_size).sigmoid()


@MODELS.register_module()
class FDConv2d(StaticStart, nn.Module):
    """Frequency dynamic convolution: Fourier disjoint weight, kernel spatial modulation, frequency band modulation.

    No ``nn.Conv2d``: a BN that was folded into the kernel's rows would change what its frequencies mean.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: as in ``nn.Conv2d``.
            A 1x1 layer has no band modulation, as in the authors' nets.
        num_experts (int, optional): n, frequency groups, each a kernel of its own. Defaults to 64 (the authors' detection
            config), or to the number of frequencies of a small kernel.
        reduction (int): ``in_channels`` over the hidden width of the global branch, which is at least 16. Defaults to 16.
        norm_cfg (dict, optional): norm of the hidden features: BN (the authors), SyncBN, LN, GN or None. BN also trains at
            a batch of one, see :mod:`.pooled_norm`.
        released (bool): frequency groups and bands as in the authors' code; converted checkpoints need it. Defaults to False.

    Raises:
        ValueError: ``num_experts`` below 1, above the number of frequencies or, with ``released``, no divisor of it, or
            ``reduction`` out of range.
    """

    # the convolutions of the residual branches: the authors leave stem and shortcuts static
    paper_patterns = {'ResNet': ['layer*.conv*']}

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
        num_experts: int | None = None,
        reduction: int = 16,
        norm_cfg: dict | None = dict(type='BN'),
        released: bool = False,
    ) -> None:
        super().__init__()
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        copy_geometry(self, conv)
        self.weight, self.bias = conv.weight, conv.bias
        rows, cols = self._matrix_shape()
        self.num_experts = _check_groups(num_experts, rows * (cols // 2 + 1))
        self.released = released
        group = (released_groups if released else frequency_groups)(rows, cols, self.num_experts)
        self.register_buffer('group', group, persistent=False)
        hidden = hidden_channels(in_channels, reduction, default=16, min_channels=16)
        self.global_modulation = GlobalModulation(self, self.num_experts, hidden, norm_cfg)
        self.local_modulation = LocalModulation(self)
        self.band_weight = self.band_bias = None
        if math.prod(self.kernel_size) > 1:
            self.band_weight = nn.Parameter(torch.empty(len(CUTOFFS), in_channels, 3, 3))
            self.band_bias = nn.Parameter(torch.empty(len(CUTOFFS)))
        self.init_weights()

    def _matrix_shape(self):
        return self.out_channels * self.kernel_size[0], self.in_channels // self.groups * self.kernel_size[1]

    def init_weights(self) -> None:
        """Kaiming-normal kernel (fan out), zero bias, every modulation as good as one: the layer starts static."""
        nn.init.kaiming_normal_(self.weight, mode='fan_out', nonlinearity='relu')
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        self.global_modulation.init_weights()
        nn.init.constant_(self.local_modulation.filters, SMALL)
        if self.band_weight is not None and self.band_bias is not None:
            nn.init.normal_(self.band_weight, std=SMALL)
            nn.init.zeros_(self.band_bias)

    def seed(self, kernel: Tensor, bias: Tensor | None) -> dict[str, Tensor | None]:
        """See :class:`.static_start.StaticStart`: every modulation is exactly one."""
        self.global_modulation.make_neutral()
        for weight in (self.local_modulation.filters, self.band_weight, self.band_bias):
            if weight is not None:
                nn.init.zeros_(weight)
        return dict(weight=kernel, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        pooled = F.adaptive_avg_pool2d(x, 1).flatten(1)
        channel, filters, spatial, frequency = self.global_modulation(pooled)
        if self.band_weight is not None:
            weights = 2 * F.conv2d(x, self.band_weight, self.band_bias, padding=1).sigmoid()
            x = modulate_bands(x, weights, self.released)

        def assemble(part: slice) -> Tensor:
            kernels = scale_frequencies(self.weight, frequency[part], self.group) * self.local_modulation(pooled[part])
            if filters is not None:
                kernels = kernels * filters[part, :, None, None, None]
            return kernels if spatial is None else kernels * spatial[part].view(-1, 1, 1, *self.kernel_size)

        # The channel factor goes to the input, which is the same: a kernel of g groups has only C_in/g input channels.
        x, padding = pad_for_mode(self, x * channel[:, :, None, None])
        return assembled_conv2d(x, self.weight.shape, assemble, self.bias, self.stride, padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        return (
            f'{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, '
            f'groups={self.groups}, num_experts={self.num_experts}'
        )


def _check_groups(num_experts: int | None, frequencies: int) -> int:
    if num_experts is None:
        return min(NUM_GROUPS, frequencies)
    check_num_experts(num_experts)
    if num_experts > frequencies:
        raise ValueError(
            f'num_experts={num_experts} is more than the {frequencies} frequencies of this kernel; each group needs one'
        )
    return num_experts

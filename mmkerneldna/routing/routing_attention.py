"""RoutingAttention2d: attention of every region of a map to the regions that matter to it.

BiFormer: Vision Transformer with Bi-Level Routing Attention, Zhu et al., CVPR 2023, https://arxiv.org/abs/2303.08810

Letters: N batch, C channels, h heads, R regions of S positions each (r x r), k regions that each one attends to.
"""

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..layers.drop_in import is_channels_last
from ..layers.routed import is_written, ranked


def split_regions(x: Tensor, region: int) -> Tensor:
    """(N, H, W, C) with sides that ``region`` divides -> (N, R, S, C), regions row by row."""
    n, height, width, channels = x.shape
    x = x.view(n, height // region, region, width // region, region, channels)
    return x.transpose(2, 3).reshape(n, -1, region * region, channels)


def join_regions(x: Tensor, height: int, width: int, region: int) -> Tensor:
    """The inverse of :func:`split_regions`: (N, R, S, C) -> (N, H, W, C)."""
    n, channels = x.shape[0], x.shape[3]
    x = x.view(n, height // region, width // region, region, region, channels)
    return x.transpose(2, 3).reshape(n, height, width, channels)


def best_regions(queries: Tensor, keys: Tensor, k: int) -> Tensor:
    """The k regions whose mean key fits a region's mean query best, the first of equals.

    Args:
        queries, keys: (N, R, C), means over the positions of a region.
        k: regions to pick, at most R.

    Returns:
        (N, R, k).
    """
    affinity = queries @ keys.transpose(1, 2)
    return ranked(affinity, k, 2)


def routed_attention(queries: Tensor, keys: Tensor, values: Tensor, k: int, heads: int, valid: Tensor | None = None) -> Tensor:
    """Attention of every position to all positions of its region's k best regions; full attention with k = R.

    Memory is that of k copies of keys and values: linear in the positions, but for the R x R affinity of regions.

    Args:
        queries, keys, values: (N, R, S, C).
        k: regions, capped at R.
        heads: h, divides C.
        valid: (R, S), False at positions that pad the map; every region has at least one that does not.

    Returns:
        (N, R, S, C).
    """
    n, regions, positions, channels = queries.shape
    weight = torch.ones(regions, positions, 1, device=queries.device) if valid is None else valid[:, :, None]
    weight = (weight / weight.sum(1, keepdim=True)).to(queries.dtype)
    with torch.no_grad():  # a choice has no gradient; the projections learn from the attention itself
        chosen = best_regions((queries * weight).sum(2), (keys * weight).sum(2), min(k, regions))
    image = torch.arange(n, device=queries.device)[:, None, None]

    def by_heads(x: Tensor) -> Tensor:  # (N, R, ..., S, C) -> (N R, h, M, C / h)
        return x.reshape(n * regions, -1, heads, channels // heads).transpose(1, 2)

    mask = None if valid is None else valid[chosen].view(n * regions, 1, 1, -1)
    y = F.scaled_dot_product_attention(
        by_heads(queries), by_heads(keys[image, chosen]), by_heads(values[image, chosen]), attn_mask=mask
    )
    return y.transpose(1, 2).reshape(n, regions, positions, channels)


@MODELS.register_module()
class RoutingAttention2d(nn.Module):
    """``y = x + project(attention(norm(x)))``, every region of r x r positions looking at k regions only.

    Regions are chosen by their mean query and mean key, for each image. The projection starts at zero, so the layer starts as
    the identity and can join a pretrained net. An mmcv plugin::

        backbone=dict(type='ResNet', plugins=[dict(
            cfg=dict(type='RoutingAttention2d', region=8, top_k=4), stages=(False, False, True, True), position='after_conv3')])

    In a neck see :class:`.routing_neck.RoutingNeck`.

    Args:
        in_channels (int): C.
        region (int): r, side of a region in positions. Defaults to 8.
        top_k (int): k, regions that each one attends to; all of them on maps that have fewer. Defaults to 4.
        num_heads (int): h. Defaults to 8, or what divides C of 4, 2 and 1.
        local_kernel (int): side of a depthwise convolution of the values that is added to the attention (the paper's local
            term, there 5); 0 for none. Defaults to 0.
        pad (bool): whether maps whose sides ``region`` does not divide are padded, and the padding masked; False makes such
            a map an error. Defaults to True.

    Raises:
        ValueError: ``region`` or ``top_k`` below 1, heads that do not divide C, an even ``local_kernel``; in ``forward``: a map
            that the regions do not divide, with ``pad=False``.
    """

    _abbr_ = 'routing_attention'  # mmcv names the plugin so

    def __init__(
        self,
        in_channels: int,
        region: int = 8,
        top_k: int = 4,
        num_heads: int | None = None,
        local_kernel: int = 0,
        pad: bool = True,
    ) -> None:
        super().__init__()
        for name, value in dict(region=region, top_k=top_k).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f'{name}={value!r} of RoutingAttention2d must be a whole number of at least 1')
        if local_kernel and (local_kernel < 0 or local_kernel % 2 == 0):
            raise ValueError(f'local_kernel={local_kernel} must be odd, or 0 for no local term')
        heads = num_heads or next(h for h in (8, 4, 2, 1) if in_channels % h == 0)
        if in_channels % heads:
            raise ValueError(f'num_heads={heads} does not divide in_channels={in_channels}')
        self.in_channels, self.region, self.top_k, self.num_heads, self.pad = in_channels, region, top_k, heads, pad
        self.norm = nn.LayerNorm(in_channels)
        self.qkv = nn.Linear(in_channels, 3 * in_channels)
        self.local: nn.Module | None = None
        if local_kernel:
            self.local = nn.Conv2d(in_channels, in_channels, local_kernel, padding=local_kernel // 2, groups=in_channels)
        self.project = nn.Linear(in_channels, in_channels)
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal; the projection zero."""
        nn.init.trunc_normal_(self.qkv.weight, std=0.02)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        height, width = x.shape[2:]
        right, below = -width % self.region, -height % self.region
        if not self.pad and (right or below):
            raise ValueError(
                f'RoutingAttention2d: regions of {self.region}x{self.region} do not divide a map of {height}x{width}; set '
                'pad=True, another region, or a size_divisor for the images'
            )
        maps = self.norm(x.permute(0, 2, 3, 1))
        qkv = self.qkv(maps)
        pads = self.pad and (is_written() or right or below)  # what is written may get a map of another size
        padded = F.pad(qkv, (0, 0, 0, right, 0, below)) if pads else qkv
        valid = self._valid(height, width, below, right, x.device) if pads else None
        queries, keys, values = split_regions(padded, self.region).chunk(3, 3)
        y = routed_attention(queries, keys, values, self.top_k, self.num_heads, valid)
        y = join_regions(y, height + below, width + right, self.region)[:, :height, :width]
        if self.local is not None:
            y = y + self.local(qkv.chunk(3, 3)[2].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y = x + self.project(y).permute(0, 3, 1, 2)
        return y if is_channels_last(x) else y.contiguous()

    def _valid(self, height: int, width: int, below: int, right: int, device: torch.device) -> Tensor:
        """(R, S), False at padding."""
        inside = F.pad(torch.ones(1, height, width, 1, device=device), (0, 0, 0, right, 0, below))
        return split_regions(inside, self.region)[0, :, :, 0] > 0

    def extra_repr(self) -> str:
        return f'{self.in_channels}, region={self.region}, top_k={self.top_k}, num_heads={self.num_heads}, pad={self.pad}'

"""RoIAlign on a CPU as weighted sums of rows, in parallel.

mmcv's CPU kernel runs on one thread and reads one value at a time: of an eager Faster R-CNN with 1000 regions it takes more
than half of the time. Seen from channels_last memory a feature map is a table with a row of C numbers per pixel, and a bin of
a region is a weighted sum of some rows: what ``embedding_bag`` computes with vector instructions on all threads. The bilinear
weights of all samples of a bin that fall on one pixel are added up first.

Letters: N images, C channels, H W map size, R regions, P bins along an axis, S samples of a bin along an axis, K pixels that
they touch.
"""

import torch
import torch.nn.functional as F
from mmcv.ops import RoIAlign
from torch import Tensor, nn

from ..modules import slots

#: weights made at a time
MAX_WEIGHTS = 4_000_000


class BagRoIAlign(nn.Module):
    """mmcv's RoIAlign (average pooling) for inference on a CPU; anything else goes to mmcv's own.

    Args:
        layer (RoIAlign): what it computes.
    """

    def __init__(self, layer: RoIAlign) -> None:
        super().__init__()
        self.layer, self.output_size = layer, layer.output_size

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """(N, C, H, W), (R, 5) with image and box in pixels of the image -> (R, C, P, P)."""
        layer = self.layer
        if not (input.device.type == 'cpu' and not torch.is_grad_enabled() and len(rois) and input.dtype == torch.float32):
            return layer(input.contiguous(), rois.contiguous())
        return roi_align(input, rois, layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.aligned)


def replace_roi_aligns(module: nn.Module) -> int:
    """Put a :class:`BagRoIAlign` in the place of every RoIAlign that averages.

    Returns:
        int: layers replaced.
    """
    places = [slot for slot in slots(module) if isinstance(slot[2], RoIAlign) and slot[2].pool_mode == 'avg']
    places = [(owner, name, layer) for owner, name, layer in places if not isinstance(owner, BagRoIAlign)]
    for owner, name, layer in places:
        owner._modules[name] = BagRoIAlign(layer)
    return len(places)


def roi_align(
    features: Tensor, rois: Tensor, bins: tuple[int, int], spatial_scale: float, sampling_ratio: int = 0, aligned: bool = True
) -> Tensor:
    """The definition of mmcv's ``roi_align`` with ``pool_mode='avg'``.

    Args:
        features: (N, C, H, W); channels_last ones are read in place.
        rois: (R, 5), image index and x1, y1, x2, y2.
        bins: P along y and x.
        spatial_scale (float): pixels of the map per pixel of the image.
        sampling_ratio (int): S, 0 for as many as a bin has pixels, rounded up.
        aligned (bool): shift by half a pixel.

    Returns:
        Tensor: (R, C, P, P).
    """
    _, channels, height, width = features.shape
    table = features.permute(0, 2, 3, 1).reshape(-1, channels)
    start = rois[:, [2, 1]] * spatial_scale - (0.5 if aligned else 0.0)  # y, x
    sizes = rois[:, [4, 3]] * spatial_scale - (0.5 if aligned else 0.0) - start
    if not aligned:
        sizes = sizes.clamp_min(1.0)
    steps = sizes / sizes.new_tensor(bins)
    samples = steps.ceil().long() if sampling_ratio <= 0 else torch.full_like(steps, sampling_ratio, dtype=torch.long)
    output = features.new_zeros(len(rois), bins[0] * bins[1], channels)
    most = samples.amax(1)
    for count in most.unique().tolist():  # regions of like size together
        if count <= 0:
            continue
        members = (most == count).nonzero().squeeze(1)
        per_region = bins[0] * bins[1] * (2 * count) ** 2
        for part in members.split(max(1, MAX_WEIGHTS // per_region)):
            rows, row_weights = _taps(start[part, 0], steps[part, 0], samples[part, 0], bins[0], height, count, sampling_ratio)
            columns, column_weights = _taps(
                start[part, 1], steps[part, 1], samples[part, 1], bins[1], width, count, sampling_ratio
            )
            first = (rois[part, 0].long() * height * width)[:, None, None, None, None]
            index = (first + rows[:, :, None, :, None] * width + columns[:, None, :, None, :]).flatten(0, 2).flatten(1)
            weights = (row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]).flatten(0, 2).flatten(1)
            sums = F.embedding_bag(index, table, per_sample_weights=weights, mode='sum')
            output[part] = sums.view(len(part), -1, channels)
    return output.transpose(1, 2).reshape(len(rois), channels, *bins)


def _taps(
    start: Tensor, step: Tensor, samples: Tensor, bins: int, length: int, count: int, sampling_ratio: int
) -> tuple[Tensor, Tensor]:
    """Pixels along one axis, and their weights.

    Args:
        start, step, samples: (R,), first border, length of a bin, samples of a bin.
        bins (int): P.
        length (int): H or W.
        count (int): S, at least the largest of ``samples``.
        sampling_ratio (int): as given; samples that follow the size of a bin lie at most a pixel apart, so that S of them touch
            S + 1 pixels, which get one weight each.

    Returns:
        tuple: (R, P, K) pixels and (R, P, K) weights, which sum to at most 1.
    """
    s = torch.arange(count, device=start.device)
    used = s < samples[:, None]
    within = (s + 0.5) / samples.clamp_min(1)[:, None]  # of a bin
    bin_index = torch.arange(bins, device=start.device)
    at = start[:, None, None] + (bin_index[None, :, None] + within[:, None, :]) * step[:, None, None]
    valid = used[:, None, :] & (at >= -1) & (at <= length)
    at = at.clamp(0, length - 1)
    low = at.floor().long()
    high = (low + 1).clamp_max(length - 1)
    share = torch.where(valid, 1.0 / samples.clamp_min(1)[:, None, None].to(at.dtype), at.new_zeros(()))
    upper = at - low
    pixels, weights = torch.cat([low, high], 2), torch.cat([share * (1 - upper), share * upper], 2)
    if sampling_ratio > 0:
        return pixels, weights
    first = low[..., :1]
    merged = weights.new_zeros(*weights.shape[:2], count + 1)
    merged.scatter_add_(2, (pixels - first).clamp(0, count), weights)
    return (first + torch.arange(count + 1, device=start.device)).clamp_max(length - 1), merged

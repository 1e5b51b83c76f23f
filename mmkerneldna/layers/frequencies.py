"""Frequencies of kernels and feature maps: groups of them, and bands.

The maths of FDConv (Chen et al., CVPR 2025, https://arxiv.org/abs/2503.18783), with the choices of its authors' code
(Linwei-Chen/FDConv) beside ours where the two differ.

Letters: N batch, C_in / C_out channels, g groups, k kernel side, n frequency groups, H W input size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .drop_in import at_least_fp32, in_format_of

#: Bands of the input: [1/4, 1/2], [1/8, 1/4], [1/16, 1/8] and [0, 1/16] of the sampling rate; the lowest is not modulated.
CUTOFFS = (1 / 4, 1 / 8, 1 / 16)
#: Side of the map at which the authors cut the bands.
RELEASED_MASK = 64


def frequency_groups(rows: int, cols: int, num_groups: int) -> Tensor:
    """Group of each frequency of a real (rows, cols) matrix, from low to high (paper, Fourier disjoint weight).

    Args:
        rows, cols: of the matrix; its half spectrum is (rows, cols // 2 + 1).
        num_groups: n; the groups are of equal size, up to mirrored frequencies at their borders.

    Returns:
        (rows, cols // 2 + 1) of group numbers, 0 for the lowest.
    """
    radius = torch.fft.fftfreq(rows)[:, None].square() + torch.fft.rfftfreq(cols)[None].square()
    order = radius.flatten().argsort(stable=True)
    group = torch.empty_like(order)
    group[order] = torch.arange(len(order)) * num_groups // len(order)
    group = group.view_as(radius)
    # In these columns the half spectrum holds both a frequency and its mirror image.
    for column in {0, cols // 2} if cols % 2 == 0 else {0}:
        half = torch.arange(1, (rows + 1) // 2)
        group[rows - half, column] = group[half, column]
    return group


def released_groups(rows: int, cols: int, num_groups: int) -> Tensor:
    """Group of each frequency as the authors' code deals them out: by distance, equal ones in the order of rows and columns.

    Mirrored frequencies at the border of two groups fall into both.

    Args, Returns: as :func:`frequency_groups`.

    Raises:
        ValueError: the frequencies can't be dealt out in groups of equal size.
    """
    count = rows * (cols // 2 + 1)
    if count % num_groups:
        raise ValueError(
            f'the released order deals out {num_groups} groups of equal size, and the {count} frequencies of a '
            f'{rows} x {cols} matrix leave a rest: take another num_experts, or released=False'
        )
    # their very norm in their precision: by its rounding, distances are equal or not
    axes = torch.fft.fftfreq(rows, dtype=torch.float32), torch.fft.rfftfreq(cols, dtype=torch.float32)
    grid = torch.meshgrid(*axes, indexing='ij')
    order = torch.stack(grid, dim=-1).norm(dim=-1).flatten().argsort(stable=True)
    group = torch.empty_like(order)
    group[order] = torch.arange(count) // (count // num_groups)
    return group.view(grid[0].shape)


def scale_frequencies(weight: Tensor, scale: Tensor, group: Tensor) -> Tensor:
    """``sum_i scale_i W_i``, with W_i the inverse DFT of group i of the kernel's spectrum, in one inverse DFT.

    Args:
        weight: (C_out, C_in/g, k, k).
        scale: (N, n).
        group: from :func:`frequency_groups` for (C_out k, C_in/g k).

    Returns:
        (N, C_out, C_in/g, k, k).
    """
    out, ins, height, width = weight.shape
    if len(scale) == 0:  # FFTs refuse an empty batch; the graph stays connected, for DDP
        return weight * scale.sum(1).view(-1, 1, 1, 1, 1)
    with torch.autocast(weight.device.type, enabled=False):  # no FFT in half precision
        spectrum = torch.fft.rfft2(at_least_fp32(weight).permute(0, 2, 1, 3).reshape(out * height, ins * width))
        spectra = spectrum * at_least_fp32(scale)[:, group]
        kernels = torch.fft.irfft2(spectra, s=(out * height, ins * width))
    return kernels.view(-1, out, height, ins, width).permute(0, 1, 3, 2, 4)


def modulate_bands(x: Tensor, weights: Tensor, released: bool = False) -> Tensor:
    """``sum_b weights_b X_b + X_low`` with X_b the b-th band of ``x`` from the top (paper, frequency band modulation).

    Args:
        x: (N, C, H, W).
        weights: (N, len(CUTOFFS), H, W).
        released: cut the bands by masks of 64 x 64, scaled to the map by its nearest entries, as the authors do.

    Returns:
        (N, C, H, W), of the dtype of ``x``.
    """
    height, width = x.shape[-2:]
    if len(x) == 0:
        return x * weights[:, :1]
    with torch.autocast(x.device.type, enabled=False):
        wide, weights = at_least_fp32(x), at_least_fp32(weights)
        spectrum = torch.fft.rfft2(wide)
        radius = _radius(height, width, x.device, released)
        low_passed = [torch.fft.irfft2(spectrum * (radius < c + 1e-8), s=(height, width)) for c in CUTOFFS]
        bands = [high - low for high, low in zip([wide, *low_passed], low_passed)]
        y = low_passed[-1] + sum(band * weight[:, None] for band, weight in zip(bands, weights.unbind(1)))
    return in_format_of(x, y.to(x.dtype))


def _radius(height: int, width: int, device: torch.device, released: bool) -> Tensor:
    """Larger of the two frequencies at each place of a half spectrum, (H, W // 2 + 1)."""
    sides = (RELEASED_MASK, RELEASED_MASK) if released else (height, width)
    rows, cols = torch.fft.fftfreq(sides[0], device=device).abs(), torch.fft.rfftfreq(sides[1], device=device)
    if released:
        rows, cols = (
            F.interpolate(axis[None, None], size, mode='nearest')[0, 0]
            for axis, size in ((rows, height), (cols, width // 2 + 1))
        )
    return torch.maximum(rows[:, None], cols[None])

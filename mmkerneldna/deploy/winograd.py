"""3x3 convolutions with a quarter of the products, for CPUs: Winograd's minimal filtering (Lavin and Gray, arXiv 1509.09308).

A tile of 4x4 outputs takes 6x6 products for each pair of channels, where a sum over the window takes 144. The products are
those of 36 matrices; what is added is the transform of the input (6x6 tiles that overlap), of the kernel (once) and of the
products. It pays off in wide layers: pyramids and heads.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import cache
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

#: outputs of a tile, side of the kernel, inputs of a tile
OUT, SIDE, IN = 4, 3, 6
#: where the polynomials are evaluated, infinity apart: of those tried they lose the fewest digits, in the worst case a quarter
#: of what 0, 1, -1, 2, -2 lose
POINTS = (Fraction(0), Fraction(3, 4), Fraction(-3, 4), Fraction(3, 2), Fraction(-3, 2))
#: tiles whose transforms are in memory at the same time: as few as fill the processor's caches, as many as make good matrices
TILES = 128


@cache
def transforms() -> tuple[Tensor, Tensor, Tensor]:
    """Matrices of a filter of 3 taps with 4 outputs, by Toom and Cook's interpolation, in float64.

    Returns:
        tuple: A (4, 6), B (6, 6), G (6, 3) with ``correlate(d, g) = A @ ((G @ g) * (B @ d))`` for 6 inputs d.
    """
    a, b, g = np.zeros((OUT, IN)), np.zeros((IN, IN)), np.zeros((IN, SIDE))
    for row, point in enumerate(POINTS):
        others = [p for p in POINTS if p != point]
        scale = math.prod(point - p for p in others)
        a[:, row] = [float(point**power) for power in range(OUT)]
        g[row] = [float(point**power / scale) for power in range(SIDE)]
        b[row, :-1] = np.poly(np.array(others, float))[::-1]
    a[-1, -1] = g[-1, -1] = 1
    b[-1] = np.poly(np.array(POINTS, float))[::-1]
    return torch.from_numpy(a), torch.from_numpy(b), torch.from_numpy(g)


@cache
def _tile_transforms() -> tuple[Tensor, Tensor]:
    """For whole tiles: products (36) -> outputs (16), inputs (36) -> factors (36)."""
    a, b, _ = transforms()
    return torch.kron(a, a).float(), torch.kron(b, b).float()


def winograd_kernel(weight: Tensor) -> Tensor:
    """A kernel as :func:`winograd_conv` takes it: (C_out, C_in, 3, 3) -> (36, C_in, C_out)."""
    g = transforms()[2]
    parts = [torch.einsum('iy,ocyx,jx->ijco', g, part.double(), g).to(weight.dtype) for part in weight.detach().split(64)]
    return torch.cat(parts, -1).contiguous().view(IN * IN, weight.shape[1], weight.shape[0])


def winograd_conv(
    x: Tensor, kernel: Tensor, padding: Sequence[int], finish: Callable[[Tensor, slice, slice], object] | None = None
) -> Tensor:
    """``conv2d`` with stride 1.

    Args:
        x: (N, C_in, H, W), float32.
        kernel: from :func:`winograd_kernel`.
        padding: rows of zeros above and below, columns left and right.
        finish: changes a part of the output in place while it is in the caches: (n, h, W', C_out), which images, which rows.

    Returns:
        Tensor: (N, C_out, H', W'), channels_last.
    """
    x = x.permute(0, 2, 3, 1)
    (height, width), (top, left) = (side + 2 * p - SIDE + 1 for side, p in zip(x.shape[1:3], padding)), padding
    y = x.new_empty(len(x), height, width, kernel.shape[2])
    across = -(-width // OUT)
    space: dict[str, Tensor] = {}
    for images, strip in _strips(len(x), -(-height // OUT), across):
        rows = slice(strip.start * OUT, min(strip.stop * OUT, height))
        tiles = _tiles(x[images], strip, across, top, left)
        outputs = _filter(tiles, kernel, space)
        part = y[images, rows]
        part.copy_(outputs[:, : part.shape[1], :width])
        if finish is not None:
            finish(part, images, rows)
    return y.permute(0, 3, 1, 2)


def _strips(images: int, down: int, across: int) -> Iterator[tuple[slice, slice]]:
    """Which images and which rows of tiles are computed together."""
    together = min(images, max(1, TILES // (down * across)))
    rows = down if together > 1 else min(down, max(1, TILES // across))
    for image, row in product(range(0, images, together), range(0, down, rows)):
        yield slice(image, min(image + together, images)), slice(row, min(row + rows, down))


def _tiles(x: Tensor, strip: slice, across: int, top: int, left: int) -> Tensor:
    """The tiles of a strip, which overlap by two pixels: (n, H, W, C) -> a view (6, 6, n, rows, columns, C)."""
    start, end = strip.start * OUT - top, strip.stop * OUT + SIDE - 1 - top
    right = across * OUT + SIDE - 1 - left - x.shape[2]
    above, below = max(-start, 0), max(end - x.shape[1], 0)
    padded = F.pad(x[:, max(start, 0) : end - below], (0, 0, left, right, above, below)).contiguous()
    n, row, column, channel = padded.stride()
    shape = (IN, IN, len(x), strip.stop - strip.start, across, x.shape[3])
    return padded.as_strided(shape, (row, column, n, OUT * row, OUT * column, channel))


def _filter(tiles: Tensor, kernel: Tensor, space: dict[str, Tensor]) -> Tensor:
    """(6, 6, n, rows, columns, C_in) -> (n, 4 rows, 4 columns, C_out)."""
    to_outputs, to_factors = _tile_transforms()
    n, rows, columns, channels = tiles.shape[2:]
    count, out = n * rows * columns, kernel.shape[2]
    inputs = _room(space, 'inputs', tiles, IN * IN, count * channels)
    inputs.view(tiles.shape).copy_(tiles)
    factors = torch.mm(to_factors, inputs, out=_room(space, 'factors', tiles, IN * IN, count * channels))
    products = torch.bmm(
        factors.view(IN * IN, count, channels), kernel, out=_room(space, 'products', tiles, IN * IN, count, out)
    )
    sums = torch.mm(to_outputs, products.view(IN * IN, -1), out=_room(space, 'sums', tiles, OUT * OUT, count * out))
    in_place = sums.view(OUT, OUT, n, rows, columns, out).permute(2, 3, 0, 4, 1, 5)
    return in_place.reshape(n, rows * OUT, columns * OUT, out)


def _room(space: dict[str, Tensor], name: str, like: Tensor, *shape: int) -> Tensor:
    """Memory that all strips use in turn (the first is the largest): fresh memory costs more than the sums in it."""
    size = math.prod(shape)
    if name not in space:
        space[name] = like.new_empty(size)
    return space[name][:size].view(shape)

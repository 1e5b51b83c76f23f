"""Blocks at kept positions: gathered once for a run of blocks, matrix products, scattered once.

Dynamic Convolutions: Exploiting Spatial Sparsity for Faster Inference, Verelst and Tuytelaars, CVPR 2020,
https://arxiv.org/abs/1912.03203

A spatial convolution needs its input around the kept positions, so what is before it is computed on the mask dilated by its
radius. The positions are sorted: the kept ones, the ring around them, the ring around these, ...; each set is then the head of
one list, and a run of blocks keeps its features in one table.

Letters: N batch, C channels, H W map, P rows of the table, t taps of a kernel.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..modules import running_stats


class Step(NamedTuple):
    """A convolution, the norm behind it and the activation behind that."""

    conv: nn.Conv2d
    norm: nn.Module | None
    activation: nn.Module | None


class Product(NamedTuple):
    """A step as matrices.

    Attributes:
        weight: (t C_in, C_out), or (t, C) of a depthwise convolution; the norm is in it.
        bias: (C_out,).
        taps (int): t, 1 or 9.
        dilation (int): of the taps.
        depthwise (bool): whether every channel has a kernel of its own.
    """

    weight: Tensor
    bias: Tensor
    taps: int
    dilation: int
    depthwise: bool


def steps_of(block: nn.Module) -> tuple[list[Step], nn.Module | None] | None:
    """The steps of a residual block, and the activation behind its sum; None if it is not one of those we know."""
    if getattr(block, 'with_plugins', False) or getattr(block, 'with_se', False):
        return None
    if hasattr(block, 'conv1') and hasattr(block, 'norm1') and hasattr(block, 'relu'):  # BasicBlock, Bottleneck
        numbers = [n for n in (1, 2, 3) if hasattr(block, f'conv{n}')]
        last = numbers[-1]
        return (
            [Step(getattr(block, f'conv{n}'), getattr(block, f'norm{n}'), None if n == last else block.relu) for n in numbers],
            block.relu,
        )  # type: ignore[return-value]  # modules, which torch's stubs do not know
    if hasattr(block, 'linear_conv'):  # inverted residual of mmdet
        parts = [m for m in (getattr(block, 'expand_conv', None), block.depthwise_conv, block.linear_conv) if m is not None]
    elif hasattr(block, 'use_res_connect'):  # of mmseg
        parts = list(block.conv)  # type: ignore[arg-type]
    else:
        return None
    if not all(type(part) is ConvModule and part.order == ('conv', 'norm', 'act') for part in parts):
        return None
    return [_module_step(part) for part in parts], None  # type: ignore[arg-type]


def _module_step(module: ConvModule) -> Step:
    return Step(module.conv, module.norm if module.with_norm else None, module.activate if module.with_activation else None)


def is_known(block: nn.Module) -> bool:
    """Whether :func:`compute_positions` takes a block."""
    return not why_unknown(block)


def why_unknown(block: nn.Module) -> str:
    """Why :func:`compute_positions` does not take a block; '' if it does."""
    steps = steps_of(block)
    if steps is None:
        return f'a {type(block).__name__} with a forward pass of its own'
    for conv, norm, _ in steps[0]:
        if not isinstance(conv, nn.Conv2d) or conv.kernel_size not in ((1, 1), (3, 3)) or conv.padding_mode != 'zeros':
            return f'which has a {conv}'
        if conv.groups not in (1, conv.in_channels) or conv.padding != tuple(
            d * (k // 2) for d, k in zip(conv.dilation, conv.kernel_size)
        ):
            return f'which has a {conv}'
        if norm is not None and not isinstance(norm, (_BatchNorm, nn.Identity)):
            return f'which has a {type(norm).__name__}'
    return ''


@torch.no_grad()
def product_of(step: Step, dtype: torch.dtype) -> Product:
    """A step as matrices, its norm folded in."""
    conv, norm = step.conv, step.norm
    weight, bias = conv.weight.double(), torch.zeros(conv.out_channels, dtype=torch.double, device=conv.weight.device)
    if conv.bias is not None:
        bias = conv.bias.double()
    if isinstance(norm, _BatchNorm):
        mean, var = (stats.double() for stats in running_stats(norm))
        factor = (var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight.double())
        weight, bias = (
            weight * factor.view(-1, 1, 1, 1),
            (bias - mean) * factor + (0 if norm.bias is None else norm.bias.double()),
        )
    taps, depthwise = weight[0, 0].numel(), conv.groups > 1
    matrix = weight.flatten(2).permute(2, 1, 0)  # (t, C_in / groups, C_out)
    matrix = matrix.reshape(taps, -1) if depthwise else matrix.reshape(-1, conv.out_channels)
    return Product(matrix.to(dtype).contiguous(), bias.to(dtype), taps, conv.dilation[0], depthwise)


class _Cache:
    """Products of a block, made again when one of its tensors changed."""

    def __init__(self) -> None:
        self.state: tuple | None = None
        self.products: list[Product] = []

    def of(self, steps: Sequence[Step], dtype: torch.dtype) -> list[Product]:
        state = (dtype, *(_state(tensor) for step in steps for tensor in _tensors(step)))
        if state != self.state:
            self.products, self.state = [product_of(step, dtype) for step in steps], state
        return self.products


def _tensors(step: Step) -> list[Tensor]:
    return [t for module in (step.conv, step.norm) if module is not None for t in (*module.parameters(), *module.buffers())]


def _state(tensor: Tensor) -> tuple:
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


class Table(NamedTuple):
    """Sorted positions of a run of blocks.

    Attributes:
        order: (P,), positions in the map (N H W).
        counts (list[int]): heads of the list: kept, with one ring, with two, ...
        rings (list[int]): widths of the rings; each is the dilation of a convolution.
        neighbours: dilation -> (P', 9), rows of the neighbours of each row that is a convolution's output; P for a
            neighbour outside of the map.
    """

    order: Tensor
    counts: list[int]
    rings: list[int]
    neighbours: dict[int, Tensor]


def make_table(keep: Tensor, rings: Sequence[int]) -> Table:
    """Sort the positions.

    Args:
        keep: (N, 1, H, W) of bool.
        rings: radii of a block's spatial convolutions, the last one first.
    """
    flat, order, counts = keep.flatten(), [keep.flatten().nonzero().flatten()], [0]
    counts[0], reached = len(order[0]), keep
    for ring in rings:
        wider = F.max_pool2d(reached.float(), 2 * ring + 1, 1, ring) > 0
        order.append((wider.flatten() & ~reached.flatten()).nonzero().flatten())
        counts.append(counts[-1] + len(order[-1]))
        reached = wider
    positions = torch.cat(order)
    row_of = torch.full_like(flat, 0, dtype=torch.long)
    row_of[positions] = torch.arange(len(positions), device=keep.device)
    outputs = counts[-2] if rings else 0
    neighbours = {d: _neighbours(positions[:outputs], row_of, keep.shape[2:], d, len(positions)) for d in set(rings)}
    return Table(positions, counts, list(rings), neighbours)


def _neighbours(positions: Tensor, row_of: Tensor, size: Sequence[int], dilation: int, outside: int) -> Tensor:
    """(P', 9): the row of each neighbour, ``outside`` beyond the map's border."""
    height, width = size
    steps = torch.tensor([-dilation, 0, dilation], device=positions.device)
    rows, columns = (positions // width % height)[:, None] + steps, (positions % width)[:, None] + steps
    valid = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
    shift = steps[:, None] * width + steps
    there = positions[:, None, None] + shift
    return torch.where(valid, row_of[there.clamp(0, len(row_of) - 1)], outside).flatten(1)


def compute_positions(x: Tensor, keep: Tensor, blocks: Sequence[nn.Module]) -> Tensor:
    """Blocks one after the other at the kept positions, the identity elsewhere.

    Args:
        x: (N, C, H, W); overwritten where it is channels_last.
        keep: (N, 1, H, W) of bool, at least one kept.
        blocks: known to :func:`steps_of`, in evaluation mode, of the same radii.

    Returns:
        Tensor: (N, C, H, W), channels_last.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    rows = x.permute(0, 2, 3, 1).view(-1, x.shape[1])
    table: Table | None = None
    features = rows
    with torch.autocast(x.device.type, enabled=False):
        for block in blocks:
            known = steps_of(block)
            assert known is not None  # checked when the stage was built
            products = _cache_of(block).of(known[0], x.dtype)
            rings = [p.dilation for p in reversed(products) if p.taps > 1]
            if table is None or table.rings != rings:
                _put_back(rows, features, table)
                table = make_table(keep, rings)
                features = rows.index_select(0, table.order)
            features[: table.counts[0]] = _block(features, table, products, known)
    _put_back(rows, features, table)
    return x


def _put_back(rows: Tensor, features: Tensor, table: Table | None) -> None:
    if table is not None:
        rows.index_copy_(0, table.order[: table.counts[0]], features[: table.counts[0]])


def _cache_of(block: nn.Module) -> _Cache:
    cache = vars(block).get('_products')
    if cache is None:
        cache = block._products = _Cache()  # type: ignore[assignment]  # no part of the net
    return cache


def _block(features: Tensor, table: Table, products: Sequence[Product], known: tuple) -> Tensor:
    """The block's output at the kept positions, (kept, C), from its input at all that matter."""
    steps, last = known
    y, level = features, len(table.rings)
    for product, step in zip(products, steps):
        level -= product.taps > 1
        y = _step(y, product, step.activation, table, level)
    y = y + features[: len(y)]
    return y if last is None else last(y)


def _step(y: Tensor, product: Product, activation: Callable | None, table: Table, level: int) -> Tensor:
    if product.taps > 1:
        padded = torch.cat([y, y.new_zeros(1, y.shape[1])])
        neighbours = table.neighbours[product.dilation][: table.counts[level]]
        if neighbours.numel() and len(y) < len(table.order):
            neighbours = torch.where(neighbours < len(table.order), neighbours, len(y))
        y = _depthwise(padded, neighbours, product) if product.depthwise else _spatial(padded, neighbours, product)
    else:
        y = torch.addmm(product.bias, y, product.weight)
    return y if activation is None else activation(y)


def _spatial(padded: Tensor, neighbours: Tensor, product: Product) -> Tensor:
    taps = padded.index_select(0, neighbours.flatten()).view(len(neighbours), -1)
    return torch.addmm(product.bias, taps, product.weight)


def _depthwise(padded: Tensor, neighbours: Tensor, product: Product) -> Tensor:
    y = product.bias.expand(len(neighbours), -1).clone()
    for tap in range(product.taps):
        y.addcmul_(padded.index_select(0, neighbours[:, tap].contiguous()), product.weight[tap])
    return y

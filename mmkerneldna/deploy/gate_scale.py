"""The gate of a deployed net, ``x * sigmoid(W2 relu(W1 mean(x) + b1) + b2)``: plain torch and two fused Triton kernels.

At batch 1 a gate on a GPU costs launches, not arithmetic: pooling, two products, two biases, ReLU, sigmoid and the scaling
are eight. The first kernel here sums pixels, the second does all the rest: each of its programs computes the whole hidden
vector again (C * R multiply-adds from cache), which is cheaper than one more launch to share it.

Letters: N batch, C channels, R hidden width, P pixel chunks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # a CPU build of torch comes without
    triton = None

#: pixels that one program sums or scales at a time, channels of one program, and elements of a weight tile in registers
PIXELS, CHANNELS, TILE = 32, 64, 8192
#: upper bound of P: the second kernel adds up P partial sums in every program
MAX_CHUNKS = 32


def gate_scale(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, fused: bool = False) -> Tensor:
    """Scale the channels of ``x`` by its gate.

    Args:
        x: (N, C, H, W).
        weight1, bias1: (R, C), (R,).
        weight2, bias2: (C, R), (C,).
        fused: use the Triton kernels where ``x`` is on a CUDA device.

    Returns:
        Tensor: (N, C, H, W), in the dtype and memory format of ``x``.
    """
    if fused and x.is_cuda:
        return torch.ops.mmkerneldna.gate_scale(x, weight1, bias1, weight2, bias2)
    return gate_scale_reference(x, weight1, bias1, weight2, bias2)


def gate_scale_reference(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """:func:`gate_scale` in plain torch, on any device."""
    hidden = F.linear(x.mean((2, 3)), weight1, bias1).relu()
    return x * F.linear(hidden, weight2, bias2).sigmoid()[:, :, None, None]


@torch.library.custom_op('mmkerneldna::gate_scale', mutates_args=(), device_types='cuda')
def _gate_scale_cuda(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    return launch(x, weight1, bias1, weight2, bias2)


@_gate_scale_cuda.register_fake
def _(x, weight1, bias1, weight2, bias2):
    return torch.empty_like(x)


def launch(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """Launch the two kernels; strides are free, only an expanded ``x`` is copied.

    Raises:
        RuntimeError: Triton is not installed.
    """
    if triton is None:
        raise RuntimeError("the fused gate needs Triton, which is not installed; deploy with gate='torch'")
    batch, channels, height, width = x.shape
    hidden, pixels = weight1.shape[0], height * width
    if x.stride(2) != width * x.stride(3):  # pixels must lie at one stride
        x = x.contiguous(memory_format=torch.channels_last)
    y = torch.empty_like(x)
    chunks = min(MAX_CHUNKS, triton.cdiv(pixels, PIXELS))
    span = triton.cdiv(triton.cdiv(pixels, chunks), PIXELS) * PIXELS
    partial = torch.empty(batch, chunks, channels, device=x.device, dtype=torch.float32)
    grid = (batch, triton.cdiv(channels, CHANNELS), chunks)
    rows = triton.next_power_of_2(hidden)
    layout = dict(SPAN=span, PIXELS=PIXELS, CHANNELS=CHANNELS)
    _sum_pixels[grid](x, partial, channels, pixels, chunks, x.stride(0), x.stride(1), x.stride(3), **layout)
    _gate_and_scale[grid](
        x,
        y,
        partial,
        weight1.contiguous(),
        bias1,
        weight2.contiguous(),
        bias2,
        channels,
        hidden,
        pixels,
        chunks,
        x.stride(0),
        x.stride(1),
        x.stride(3),
        y.stride(0),
        y.stride(1),
        y.stride(3),
        CHUNKS=triton.next_power_of_2(chunks),
        ROWS=rows,
        COLS=max(16, TILE // rows),
        **layout,
    )
    return y


if triton is not None:

    @triton.jit
    def _sum_pixels(
        x, partial, channels, pixels, chunks, x_n, x_c, x_p, SPAN: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr
    ):
        n, chunk = tl.program_id(0).to(tl.int64), tl.program_id(2)
        c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
        total = tl.zeros([CHANNELS], tl.float32)
        for start in range(0, SPAN, PIXELS):
            p = chunk * SPAN + start + tl.arange(0, PIXELS)
            mask = (p[:, None] < pixels) & (c[None, :] < channels)
            tile = tl.load(x + n * x_n + p[:, None] * x_p + c[None, :] * x_c, mask=mask, other=0.0)
            total += tl.sum(tile.to(tl.float32), axis=0)
        tl.store(partial + (n * chunks + chunk) * channels + c, total, mask=c < channels)

    @triton.jit
    def _gate_and_scale(
        x,
        y,
        partial,
        weight1,
        bias1,
        weight2,
        bias2,
        channels,
        hidden,
        pixels,
        chunks,
        x_n,
        x_c,
        x_p,
        y_n,
        y_c,
        y_p,
        CHUNKS: tl.constexpr,
        ROWS: tl.constexpr,
        COLS: tl.constexpr,
        SPAN: tl.constexpr,
        PIXELS: tl.constexpr,
        CHANNELS: tl.constexpr,
    ):
        n, chunk = tl.program_id(0).to(tl.int64), tl.program_id(2)
        r, k = tl.arange(0, ROWS), tl.arange(0, CHUNKS)
        h = tl.load(bias1 + r, mask=r < hidden, other=0.0).to(tl.float32)
        for start in range(0, channels, COLS):
            q = start + tl.arange(0, COLS)
            sums = tl.load(
                partial + (n * chunks + k[:, None]) * channels + q[None, :],
                mask=(k[:, None] < chunks) & (q[None, :] < channels),
                other=0.0,
            )
            pooled = tl.sum(sums, axis=0) / pixels
            w = tl.load(
                weight1 + r[:, None] * channels + q[None, :], mask=(r[:, None] < hidden) & (q[None, :] < channels), other=0.0
            )
            h += tl.sum(w.to(tl.float32) * pooled[None, :], axis=1)
        h = tl.maximum(h, 0.0)
        c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
        w = tl.load(weight2 + c[:, None] * hidden + r[None, :], mask=(c[:, None] < channels) & (r[None, :] < hidden), other=0.0)
        g = tl.sum(w.to(tl.float32) * h[None, :], axis=1) + tl.load(bias2 + c, mask=c < channels, other=0.0).to(tl.float32)
        g = 1 / (1 + tl.exp(-g))
        for start in range(0, SPAN, PIXELS):
            p = chunk * SPAN + start + tl.arange(0, PIXELS)
            mask = (p[:, None] < pixels) & (c[None, :] < channels)
            tile = tl.load(x + n * x_n + p[:, None] * x_p + c[None, :] * x_c, mask=mask, other=0.0)
            scaled = tile.to(tl.float32) * g[None, :]
            tl.store(y + n * y_n + p[:, None] * y_p + c[None, :] * y_c, scaled.to(tile.dtype), mask=mask)

"""The convolution of a KernelDNA child, ``conv2d(g * x, W * (1 + f) * (1 + s))``, without keeping g * x and the kernel.

KernelDNA: Dynamic Kernel Sharing via Decoupled Naive Adapters, Huang et al., https://arxiv.org/abs/2503.23379

Written plainly, autograd keeps the scaled input and the modulated kernel of every child until the backward pass: a second
map and a second kernel per child, more than sharing saves. Both are one multiplication away from tensors that are alive
anyway (the input is what the ReLU before keeps, the kernel is a parameter), so the backward pass computes them again.

What wants more than one derivative gets the plain operations: all of ``torch.func`` and forward-mode differentiation from the
start, a backward pass that is itself to be differentiated (``create_graph=True``) from there on.

Letters: N batch, C_in / C_out channels, G groups, k kernel size.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..torch_internals import is_transformed
from .per_sample import PaddingLike


def modulation(filter_scale: Tensor, spatial_scale: Tensor | None) -> Tensor:
    """(1 + f) * (1 + s): (C_out, 1, 1, 1), (1, 1, k, k) or None -> (C_out, 1, k, k), (C_out, 1, 1, 1) without s."""
    factor = 1 + filter_scale
    return factor if spatial_scale is None else factor * (1 + spatial_scale)


def low_rank(residual_b: Tensor, residual_a: Tensor) -> Tensor:
    """B A: (C_out, r), (r, C_in / G * k * k) -> (C_out, C_in / G * k * k), in the factors' dtype under autocast too."""
    with torch.autocast(residual_b.device.type, enabled=False):
        return residual_b @ residual_a


def modulate_kernel(
    weight: Tensor,
    filter_scale: Tensor,
    spatial_scale: Tensor | None,
    residual_b: Tensor | None = None,
    residual_a: Tensor | None = None,
) -> Tensor:
    """W * (1 + filter_scale) * (1 + spatial_scale) + B A.

    The two small factors are joined first: the kernel itself is read and written once.

    Args:
        weight (Tensor): (C_out, C_in / G, k, k).
        filter_scale (Tensor): (C_out, 1, 1, 1).
        spatial_scale (Tensor, optional): (1, 1, k, k).
        residual_b (Tensor, optional): (C_out, r), B of the low-rank residual, which is not part of the paper.
        residual_a (Tensor, optional): (r, C_in / G * k * k), its A.

    Returns:
        Tensor: (C_out, C_in / G, k, k).
    """
    kernel = weight * modulation(filter_scale, spatial_scale)
    return kernel if residual_b is None or residual_a is None else kernel + low_rank(residual_b, residual_a).view_as(kernel)


def can_recompute(x: Tensor, padding) -> bool:
    """Whether :func:`gated_conv2d` applies and pays.

    Not without gradients (nothing is kept then), nor under a tracer or compiler (they need plain operations, and
    torch.compile decides by itself what to compute again), a transform of ``torch.func`` or forward-mode differentiation, nor
    with padding by name.
    """
    return (
        isinstance(x, Tensor)
        and torch.is_grad_enabled()
        and not isinstance(padding, str)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not is_transformed()
    )


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast computes convolutions of ``x`` in, None where it is off."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def gated_conv2d(
    x: Tensor,
    gate: Tensor,
    weight: Tensor,
    filter_scale: Tensor,
    spatial_scale: Tensor | None,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: PaddingLike,
    dilation: Sequence[int],
    groups: int,
    residual_b: Tensor | None = None,
    residual_a: Tensor | None = None,
) -> Tensor:
    """The child's convolution, keeping its arguments alone for the backward pass.

    Follows autocast.

    Args:
        x: (N, C_in, H, W).
        gate: (N, C_in, 1, 1).
        weight: (C_out, C_in / G, k, k), the parent's kernel.
        filter_scale: (C_out, 1, 1, 1).
        spatial_scale: (1, 1, k, k) or None.
        bias: (C_out,) or None.
        stride, padding, dilation, groups: as ``nn.Conv2d`` holds them.
        residual_b, residual_a: (C_out, r), (r, C_in / G * k * k), the low-rank residual of the kernel, or None.

    Returns:
        Tensor: (N, C_out, H', W').
    """
    geometry = (stride, padding, dilation, groups)
    return _GatedConv2d.apply(
        x, gate, weight, filter_scale, spatial_scale, residual_b, residual_a, bias, geometry, autocast_dtype(x)
    )


class _GatedConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gate, weight, filter_scale, spatial_scale, residual_b, residual_a, bias, geometry, dtype):
        ctx.save_for_backward(x, gate, weight, filter_scale, spatial_scale, residual_b, residual_a)
        ctx.bias = None if bias is None else (list(bias.shape), bias.dtype)
        ctx.geometry, ctx.dtype = geometry, dtype
        kernel = modulate_kernel(weight, filter_scale, spatial_scale, residual_b, residual_a)
        bias = bias if bias is None else _in(bias, dtype)
        return torch.conv2d(_in(x * gate, dtype), _in(kernel, dtype), bias, *geometry)

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():  # this pass is to be differentiated
            return _GatedConv2d._differentiable_backward(ctx, grad)
        x, gate, *kernel_parts = ctx.saved_tensors
        need_x, need_gate, *need_kernel, need_bias = ctx.needs_input_grad[:8]
        stride, padding, dilation, groups = ctx.geometry
        grad_scaled, grad_kernel, grad_bias = torch.ops.aten.convolution_backward(
            grad,
            _in(x * gate, ctx.dtype),
            _in(modulate_kernel(*kernel_parts), ctx.dtype),
            ctx.bias and ctx.bias[0],
            stride,
            padding,
            dilation,
            False,
            [0, 0],
            groups,
            [need_x or need_gate, any(need_kernel), need_bias],
        )
        grad_gate = (grad_scaled * x).sum((2, 3), keepdim=True).to(gate.dtype) if need_gate else None
        grad_x = _multiplied(grad_scaled, gate).to(x.dtype) if need_x else None
        grads = (None,) * 5 if grad_kernel is None else _kernel_grads(grad_kernel, need_kernel, *kernel_parts)
        return grad_x, grad_gate, *grads, grad_bias.to(ctx.bias[1]) if need_bias else None, None, None

    @staticmethod
    def _differentiable_backward(ctx, grad):
        zero = None if ctx.bias is None else grad.new_zeros(ctx.bias[0]).to(ctx.bias[1]).requires_grad_()

        def plain(x, gate, *parts):
            *kernel_parts, bias = parts
            kernel = _in(modulate_kernel(*kernel_parts), ctx.dtype)
            return torch.conv2d(_in(x * gate, ctx.dtype), kernel, None if bias is None else _in(bias, ctx.dtype), *ctx.geometry)

        return (*plain_gradients(plain, (*ctx.saved_tensors, zero), ctx.needs_input_grad[:8], grad), None, None)


def plain_gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor | None], needed: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    """Gradients of ``function`` by each input that needs one, themselves differentiable."""
    # Aliases: where one input was computed from another, the gradient must not run on along that way.
    aliases = [t if t is None else t.view_as(t) for t in inputs]
    wanted = [alias for alias, need in zip(aliases, needed) if need and alias is not None]
    with torch.autocast(grad.device.type, enabled=False):
        grads = iter(torch.autograd.grad(function(*aliases), wanted, grad, create_graph=True))
    return [next(grads) if need else None for need in needed]


def _in(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor if dtype is None else tensor.to(dtype)


def _kernel_grads(
    grad: Tensor,
    needed: Sequence[bool],
    weight: Tensor,
    filter_scale: Tensor,
    spatial_scale: Tensor | None,
    residual_b: Tensor | None,
    residual_a: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Gradients of kernel, filter scale, spatial scale and the residual's two factors from that of the modulated kernel."""
    need_weight, need_filter, need_spatial, need_b, need_a = needed
    grad = grad.to(weight.dtype)
    grad_b = grad.flatten(1) @ residual_a.t() if need_b and residual_a is not None else None
    grad_a = residual_b.t() @ grad.flatten(1) if need_a and residual_b is not None else None
    grad_filter = grad_spatial = None
    if need_filter or need_spatial:
        taps = (grad * weight).sum(1, keepdim=True)  # (C_out, 1, k, k), the gradient of the joint factor
        grad_spatial = (taps * (1 + filter_scale)).sum(0, keepdim=True) if need_spatial else None
        grad_filter = taps if spatial_scale is None else taps * (1 + spatial_scale)
        grad_filter = grad_filter.sum((2, 3), keepdim=True) if need_filter else None
    grad_weight = _multiplied(grad, modulation(filter_scale, spatial_scale)) if need_weight else None
    return grad_weight, grad_filter, grad_spatial, grad_b, grad_a


def _multiplied(grad: Tensor, factor: Tensor) -> Tensor:
    """``grad * factor``, in place where that loses no digits: ``grad`` is not needed any more."""
    return grad.mul_(factor) if grad.dtype == factor.dtype else grad * factor

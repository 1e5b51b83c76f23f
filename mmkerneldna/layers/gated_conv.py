"""The convolution of a KernelDNA child, ``conv2d(g * x, W * (1 + f) * (1 + s))``, without keeping g * x and the kernel.

KernelDNA: Dynamic Kernel Sharing via Decoupled Naive Adapters, Huang et al., https://arxiv.org/abs/2503.23379

Written plainly, autograd keeps the scaled input and the modulated kernel of every child until the backward pass: a second
map and a second kernel per child, more than sharing saves. Both are one multiplication away from tensors that are alive
anyway (the input is what the ReLU before keeps, the kernel is a parameter), so the backward pass computes them again.

Letters: N batch, C_in / C_out channels, G groups, k kernel size.
"""
from typing import Optional, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def modulation(filter_scale: Tensor, spatial_scale: Optional[Tensor]) -> Tensor:
    """(1 + f) * (1 + s): (C_out, 1, 1, 1), (1, 1, k, k) or None -> (C_out, 1, k, k), (C_out, 1, 1, 1) without s."""
    factor = 1 + filter_scale
    return factor if spatial_scale is None else factor * (1 + spatial_scale)


def can_recompute(x: Tensor, padding) -> bool:
    """Whether :func:`gated_conv2d` applies and pays.

    Not without gradients (nothing is kept then), nor under a tracer or compiler (they need plain operations, and
    torch.compile decides by itself what to compute again), nor with padding by name.
    """
    return (isinstance(x, Tensor) and torch.is_grad_enabled() and not isinstance(padding, str)
            and not torch.compiler.is_compiling() and not torch.jit.is_tracing())


def autocast_dtype(x: Tensor) -> Optional[torch.dtype]:
    """What autocast computes convolutions of ``x`` in, None where it is off."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def gated_conv2d(x: Tensor, gate: Tensor, weight: Tensor, filter_scale: Tensor, spatial_scale: Optional[Tensor],
                 bias: Optional[Tensor], stride: Tuple[int, int], padding: Tuple[int, int], dilation: Tuple[int, int],
                 groups: int) -> Tensor:
    """The child's convolution, keeping its arguments alone for the backward pass.

    Follows autocast. Can be differentiated once.

    Args:
        x: (N, C_in, H, W).
        gate: (N, C_in, 1, 1).
        weight: (C_out, C_in / G, k, k), the parent's kernel.
        filter_scale: (C_out, 1, 1, 1).
        spatial_scale: (1, 1, k, k) or None.
        bias: (C_out,) or None.
        stride, padding, dilation, groups: as ``nn.Conv2d`` holds them.

    Returns:
        Tensor: (N, C_out, H', W').
    """
    geometry = (stride, padding, dilation, groups)
    return _GatedConv2d.apply(x, gate, weight, filter_scale, spatial_scale, bias, geometry, autocast_dtype(x))


class _GatedConv2d(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x, gate, weight, filter_scale, spatial_scale, bias, geometry, dtype):
        ctx.save_for_backward(x, gate, weight, filter_scale, spatial_scale)
        ctx.bias = None if bias is None else (list(bias.shape), bias.dtype)
        ctx.geometry, ctx.dtype = geometry, dtype
        scaled, kernel = _scaled(x, gate, dtype), _scaled(weight, modulation(filter_scale, spatial_scale), dtype)
        bias = bias if bias is None or dtype is None else bias.to(dtype)
        return torch.conv2d(scaled, kernel, bias, *geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, gate, weight, filter_scale, spatial_scale = ctx.saved_tensors
        need_x, need_gate, *need_kernel, need_bias = ctx.needs_input_grad[:6]
        factor = modulation(filter_scale, spatial_scale)
        stride, padding, dilation, groups = ctx.geometry
        grad_scaled, grad_kernel, grad_bias = torch.ops.aten.convolution_backward(
            grad, _scaled(x, gate, ctx.dtype), _scaled(weight, factor, ctx.dtype), ctx.bias and ctx.bias[0], stride, padding,
            dilation, False, [0, 0], groups, [need_x or need_gate, any(need_kernel), need_bias])
        grad_gate = (grad_scaled * x).sum((2, 3), keepdim=True).to(gate.dtype) if need_gate else None
        grad_x = _multiplied(grad_scaled, gate).to(x.dtype) if need_x else None
        grad_kernel = _kernel_grads(grad_kernel, weight, filter_scale, spatial_scale, factor, need_kernel)
        return grad_x, grad_gate, *grad_kernel, grad_bias.to(ctx.bias[1]) if need_bias else None, None, None


def _scaled(tensor: Tensor, factor: Tensor, dtype: Optional[torch.dtype]) -> Tensor:
    product = tensor * factor
    return product if dtype is None else product.to(dtype)


def _kernel_grads(grad: Optional[Tensor], weight: Tensor, filter_scale: Tensor, spatial_scale: Optional[Tensor],
                  factor: Tensor, needed) -> Tuple[Optional[Tensor], Optional[Tensor], Optional[Tensor]]:
    """Gradients of kernel, filter scale and spatial scale from that of the modulated kernel."""
    need_weight, need_filter, need_spatial = needed
    if grad is None:
        return None, None, None
    grad = grad.to(weight.dtype)
    grad_filter = grad_spatial = None
    if need_filter or need_spatial:
        taps = (grad * weight).sum(1, keepdim=True)  # (C_out, 1, k, k), the gradient of the joint factor
        grad_spatial = (taps * (1 + filter_scale)).sum(0, keepdim=True) if need_spatial else None
        grad_filter = taps if spatial_scale is None else taps * (1 + spatial_scale)
        grad_filter = grad_filter.sum((2, 3), keepdim=True) if need_filter else None
    return _multiplied(grad, factor) if need_weight else None, grad_filter, grad_spatial


def _multiplied(grad: Tensor, factor: Tensor) -> Tensor:
    """``grad * factor``, in place where that loses no digits: ``grad`` is not needed any more."""
    return grad.mul_(factor) if grad.dtype == factor.dtype else grad * factor

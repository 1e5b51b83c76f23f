"""Convolutions whose kernels are mixed, per sample, from a bank of static pieces that all samples share.

Letters: N batch, C_in / C_out channels, g groups, k kernel side, n experts or cells, H W input size.

``mixture_conv2d`` mixes whole kernels (CondConv, DyConv, ODConv); ``bank_conv2d`` is its core, which KernelWarehouse also
uses to put mixtures of cells in their places. The kernels of a batch are never together in memory, neither in the forward
nor in the backward pass: each part of the batch (:func:`.per_sample.part_size`) has its kernels mixed when it is convolved,
and mixed again when its gradients are. Kept, they would be N / n times the parameters of the layer: 300 MB for one layer of
512 channels at a batch of 32.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .gated_conv import autocast_dtype, can_recompute, plain_gradients
from .per_sample import (
    PaddingLike,
    Pair,
    add_bias,
    assembled_conv2d,
    check_strategy,
    convolve_part,
    join,
    part_gradients,
    part_size,
    parts_of,
)


def mixture_conv2d(
    x: Tensor,
    attention: Tensor | None,
    experts: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: PaddingLike = 0,
    dilation: Pair = 1,
    groups: int = 1,
    scales: Sequence[Tensor] = (),
    strategy: str | None = None,
) -> Tensor:
    """Convolve sample i with the kernel ``sum_j attention[i, j] * experts[j]``, times each of ``scales[...][i]``.

    Args:
        x: (N, C_in, H, W).
        attention: (N, n) mixing weights; they need not sum to one. None for a single expert of weight one.
        experts: (n, C_out, C_in/groups, k, k).
        bias: None, (C_out,) or (N, C_out); not mixed here.
        stride, padding, dilation, groups: as in :func:`torch.nn.functional.conv2d`.
        scales: factors of the mixed kernels, each of five axes that broadcast to (N, C_out, C_in/groups, k, k).
        strategy: one of ``PER_SAMPLE``; None lets ``select_per_sample`` choose. Or ``'outputs'``, which convolves with all n
            experts and mixes the outputs (no scales) and is never chosen: of all shapes measured on a CPU it won at 512
            channels on 7x7 maps alone, and it holds n times the activations.

    Returns:
        (N, C_out, H', W').

    Raises:
        ValueError: the shapes do not fit, or the strategy is unknown or cannot do this case.
    """
    _check_mixture(x, attention, experts, scales)
    geometry: dict[str, Any] = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    if attention is None and not scales:
        return add_bias(F.conv2d(x, experts[0], **geometry), bias)
    if strategy == 'outputs':
        return add_bias(_mix_outputs(x, attention, experts, scales, geometry), bias)
    last = experts.permute(0, 1, 3, 4, 2)
    channels_last = last.is_contiguous() and not experts.is_contiguous()
    bank = last if channels_last else experts  # mixed as they lie in memory
    piece_shape = bank.shape[1:]

    def place(mixed: Tensor, *factors: Tensor) -> Tensor:
        kernels = mixed.unflatten(1, piece_shape)
        return _scaled(kernels.permute(0, 1, 4, 2, 3) if channels_last else kernels, factors, attention is not None)

    return bank_conv2d(
        x, attention, bank.flatten(1), place, experts.shape[1:], bias, **geometry, factors=scales, strategy=strategy
    )


def bank_conv2d(
    x: Tensor,
    attention: Tensor | None,
    bank: Tensor,
    place: Callable[..., Tensor],
    kernel_shape: Sequence[int],
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: PaddingLike = 0,
    dilation: Pair = 1,
    groups: int = 1,
    factors: Sequence[Tensor] = (),
    strategy: str | None = None,
) -> Tensor:
    """Convolve each sample with the kernel that ``place`` makes of its mixtures of the pieces of a bank.

    Follows autocast.

    Args:
        x: (N, C_in, H, W).
        attention: (N, n), or (N, m, n) for m mixtures per sample. None for a bank of one piece, taken as it is.
        bank: (n, L), n pieces of L elements.
        place: from the mixtures of some samples, (samples * m, L), and their share of ``factors`` to their kernels,
            (samples, *kernel_shape). Without gradients it may overwrite the mixtures, if there is an attention.
        kernel_shape: (C_out, C_in/groups, k, k).
        bias: None, (C_out,) or (N, C_out).
        stride, padding, dilation, groups: as in :func:`torch.nn.functional.conv2d`.
        factors: further tensors that ``place`` needs, the batch first.
        strategy: one of ``PER_SAMPLE``; None lets ``select_per_sample`` choose.

    Returns:
        (N, C_out, H', W').
    """
    geometry: dict[str, Any] = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    if not len(x) or not can_recompute(x, padding):
        return assembled_conv2d(
            x,
            kernel_shape,
            lambda part: place(_mix(attention, bank, part), *_of(factors, part)),
            bias,
            **geometry,
            strategy=strategy,
        )
    strategy = check_strategy(strategy, x, kernel_shape, **geometry)
    y = _BankConv2d.apply(x, attention, bank, place, kernel_shape, geometry, strategy, autocast_dtype(x), *factors)
    return add_bias(y, bias)


class _BankConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, attention, bank, place, kernel_shape, geometry, strategy, dtype, *factors):
        ctx.save_for_backward(x, attention, bank, *factors)
        ctx.place, ctx.geometry, ctx.strategy, ctx.dtype = place, geometry, strategy, dtype
        ctx.step = part_size(strategy, x, kernel_shape, geometry['stride'])
        x, bank = _cast(x, dtype), _cast(bank, dtype)
        return join(
            [
                convolve_part(
                    strategy, x[part], _cast(place(_mix(attention, bank, part), *_of(factors, part)), dtype), **geometry
                )
                for part in parts_of(len(x), ctx.step)
            ]
        )

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():  # this pass is to be differentiated
            return _BankConv2d._differentiable_backward(ctx, grad)
        x, attention, bank, *factors = ctx.saved_tensors
        need_x, need_attention, need_bank = ctx.needs_input_grad[:3]
        need_factors = ctx.needs_input_grad[8:]
        x_cast, bank_cast = _cast(x, ctx.dtype), _cast(bank, ctx.dtype)
        grads = _Gradients(
            x if need_x else None,
            attention if need_attention else None,
            bank if need_bank else None,
            [factor if need else None for factor, need in zip(factors, need_factors)],
        )
        for part in parts_of(len(x), ctx.step):
            leaves = [t.detach().requires_grad_() for t in (_mix(attention, bank_cast, part), *_of(factors, part))]
            with torch.enable_grad():
                kernels = _cast(ctx.place(*leaves), ctx.dtype)
            grad_x, grad_kernels = part_gradients(
                ctx.strategy,
                grad[part],
                x_cast[part],
                kernels.detach(),
                **ctx.geometry,
                need_x=need_x,
                need_weight=need_attention or need_bank or any(need_factors),
            )
            grads.put_x(part, grad_x)
            if grad_kernels is not None:
                grad_mixed, *grad_factors = torch.autograd.grad(kernels, leaves, grad_kernels)
                grads.put_kernels(part, grad_mixed, grad_factors, attention, bank_cast)
        return grads.x, grads.attention, grads.bank, *[None] * 5, *grads.factors

    @staticmethod
    def _differentiable_backward(ctx, grad):

        def plain(x, attention, bank, *factors):
            whole = slice(None)
            kernels = _cast(ctx.place(_mix(attention, _cast(bank, ctx.dtype), whole), *factors), ctx.dtype)
            parts = zip(_cast(x, ctx.dtype).split(ctx.step), kernels.split(ctx.step))
            return join([convolve_part(ctx.strategy, *part, **ctx.geometry) for part in parts])

        needed = ctx.needs_input_grad
        grads = plain_gradients(plain, ctx.saved_tensors, (*needed[:3], *needed[8:]), grad)
        return *grads[:3], *[None] * 5, *grads[3:]


class _Gradients:
    """Gradients of a batch, filled part by part; what is not needed is given as None."""

    def __init__(self, x: Tensor | None, attention: Tensor | None, bank: Tensor | None, factors: list[Tensor | None]) -> None:
        self.x, self.attention, *self.factors = (None if t is None else torch.empty_like(t) for t in (x, attention, *factors))
        self.bank = None if bank is None else torch.zeros_like(bank)

    def put_x(self, part: slice, grad: Tensor | None) -> None:
        if self.x is not None and grad is not None:
            self.x[part] = grad

    def put_kernels(
        self, part: slice, grad_mixed: Tensor, grad_factors: list[Tensor], attention: Tensor | None, bank: Tensor
    ) -> None:
        for whole, grad in zip(self.factors, grad_factors):
            if whole is not None:
                whole[part] = grad
        if attention is None:
            if self.bank is not None:
                self.bank += grad_mixed
            return
        rows = attention[part].reshape(-1, attention.shape[-1]).to(grad_mixed.dtype)
        if self.attention is not None:
            self.attention[part] = torch.mm(grad_mixed, bank.t()).view(-1, *attention.shape[1:])
        if self.bank is None:
            return
        if grad_mixed.dtype == self.bank.dtype:
            self.bank.addmm_(rows.t(), grad_mixed)  # in place: a sum of its own for each part would be fresh memory
        else:
            self.bank += torch.mm(rows.t(), grad_mixed)


def _mix(attention: Tensor | None, bank: Tensor, part: slice) -> Tensor:
    """Mixtures of a part of the batch, (samples * m, L). One matrix product.

    The broadcast form ``(attention * experts).sum(1)`` writes N * n kernels first: 1.2 GB for one 512-channel layer with 4
    experts at batch 32.
    """
    if attention is None:
        return bank
    return torch.mm(attention[part].reshape(-1, attention.shape[-1]).to(bank.dtype), bank)


def _scaled(kernels: Tensor, factors: Sequence[Tensor], fresh: bool) -> Tensor:
    """The product; without gradients, in place if ``kernels`` is ours alone (``fresh``)."""
    for factor in (factor.to(kernels.dtype) for factor in factors):
        if factor.shape[2] == 1 and kernels.is_contiguous():
            # repeated for C_in a row lies as the kernel does: a product with (N, 1, 1, 3, 3) runs over 3 numbers at a time
            rows = factor.expand(-1, -1, kernels.shape[2], -1, -1).contiguous()
        else:
            rows = factor
        kernels = kernels.mul_(rows) if fresh and not torch.is_grad_enabled() else kernels * rows
        fresh = True
    return kernels


def _of(factors: Sequence[Tensor], part: slice) -> list[Tensor]:
    return [factor[part] for factor in factors]


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor if dtype is None else tensor.to(dtype)


def _mix_outputs(x, attention, experts, scales, geometry):
    if scales or attention is None:
        raise ValueError("strategy 'outputs' mixes outputs of static kernels: it needs an attention and no scales")
    parts = (F.conv2d(x, kernel, **geometry) for kernel in experts)
    return sum(part * weight.to(part.dtype)[:, None, None, None] for part, weight in zip(parts, attention.t()))


def _check_mixture(x, attention, experts, scales):
    wanted = (x.shape[0], experts.shape[0])
    if attention is None and experts.shape[0] != 1:
        raise ValueError(f'mixture_conv2d needs an attention for {experts.shape[0]} experts, got None')
    if attention is not None and tuple(attention.shape) != wanted:
        raise ValueError(f'mixture_conv2d needs an attention of shape {wanted} (batch, experts), got {tuple(attention.shape)}')
    full = (x.shape[0], *experts.shape[1:])
    for scale in scales:
        if (
            scale.dim() != 5
            or any(size not in (1, whole) for size, whole in zip(scale.shape[1:], full[1:]))
            or scale.shape[0] != full[0]
        ):
            raise ValueError(
                f'mixture_conv2d needs scales that broadcast to the kernels {full} and have the batch '
                f'{full[0]}, got {tuple(scale.shape)}'
            )

"""Experts per position without gradients on a CPU: as :func:`.position_moe.route_positions`, in fewer passes over memory.

Letters: P positions, C_in / C_out channels, n experts, k experts per position, M positions of one expert.
"""

import math
import threading
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..layers.routed import is_written

#: from (M, C_in) to (M, C_out), which it is given to write to
Writer = Callable[[Tensor, Tensor], object]
#: a larger workspace is not kept from call to call
KEPT_BYTES = 32 << 20

_kept = threading.local()


def infers_plainly(positions: Tensor, chosen: Tensor, weight: Tensor) -> bool:
    """Whether :func:`infer_positions` is for this call, of a layer with such a weight, (n, ...)."""
    return (
        chosen.shape[1] < len(weight)
        and not torch.is_grad_enabled()
        and not is_written()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled(positions.device.type)
        and positions.device.type == 'cpu'
        and positions.dtype == weight.dtype
        and positions.dtype in (torch.float32, torch.float64)
    )


def infer_positions(
    positions: Tensor, weights: Tensor, chosen: Tensor, experts: Sequence[Writer], channels: int, bias: Tensor | None
) -> Tensor:
    """``y_i = sum_j weights_ij experts[chosen_ij](positions_i) + bias``.

    The experts read and write blocks of a workspace: to get fresh pages at every call takes longer than to read a map twice.
    The last gather puts the rows into the order of the positions; weights, sum and bias are part of it. One gather for all
    experts: each parallel call wakes a thread, for some 40 us.

    Args:
        positions: (P, C_in).
        weights: (P, k).
        chosen: (P, k), expert numbers, no number twice per position.
        experts: n functions.
        channels: C_out.
        bias: (C_out,).

    Returns:
        (P, C_out).
    """
    (count, k), last = chosen.shape, chosen.numel()
    order, counts, inverse = sort_by_expert(chosen.flatten(), len(experts))
    blocks, rows = workspace(positions, (last, positions.shape[1]), (last + 1, channels))
    torch.index_select(positions, 0, order if k == 1 else order // k, out=blocks)
    for expert, block, part in zip(experts, blocks.split(counts), rows[:last].split(counts)):
        if len(block):
            expert(block, part)
    rows[last] = 0 if bias is None else bias
    index, factors = order.new_empty(count, k + 1), rows.new_empty(count, k + 1)
    index[:, :k], factors[:, :k] = inverse.view(-1, k), weights
    index[:, k], factors[:, k] = last, 1  # the bias is one more row for each position
    return F.embedding_bag(index, rows, mode='sum', per_sample_weights=factors)


def sort_by_expert(chosen: Tensor, experts: int) -> tuple[Tensor, list[int], Tensor]:
    """As :func:`.position_moe.group`, on a CPU: numpy sorts such small numbers by their digits, in a third of the time.

    Args:
        chosen: (A,), expert numbers.
        experts: n.
    """
    numbers = chosen.numpy()
    order = numbers.astype(np.uint8 if experts <= 256 else np.uint16).argsort(kind='stable')
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return torch.from_numpy(order), np.bincount(numbers, minlength=experts).tolist(), torch.from_numpy(inverse)


def workspace(like: Tensor, *shapes: tuple[int, int]) -> list[Tensor]:
    """Matrices of any content, in memory that the next call in this thread gets too."""
    sizes = [math.prod(shape) for shape in shapes]
    buffer = getattr(_kept, str(like.dtype), None)
    if buffer is None or len(buffer) < sum(sizes):
        with torch.inference_mode(False):  # a tensor made in inference mode could not be written to outside of it
            buffer = torch.empty(sum(sizes), dtype=like.dtype)
        if buffer.nbytes <= KEPT_BYTES:
            setattr(_kept, str(like.dtype), buffer)
    return [part.view(shape) for part, shape in zip(buffer[: sum(sizes)].split(sizes), shapes)]

"""Name the hidden channels of a block anew, so that a child's filters meet the parent's that are most like them.

Between two convs of a block the order of channels is free: if conv2's filters, the norm behind them and the input channels of
conv3 move together, the block computes what it did. The dense twin is relabelled; fitting goes on from there.
"""

import re
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .run import Run, recorded

POSITIONS = 20_000  # of the output maps that correlations are taken over


def free_hidden(twin: nn.Module, path: str, parents: Mapping[str, str]) -> tuple[str, str] | None:
    """The norm behind the conv at ``path`` and the conv behind that, if the channels between may change their order.

    They may if the next conv's kernel is neither borrowed nor lent, and not grouped.
    """
    found = re.fullmatch(r'(.+)\.conv(\d)', path)
    if not found:
        return None
    block, number = twin.get_submodule(found.group(1)), int(found.group(2))
    follower = f'{found.group(1)}.conv{number + 1}'
    norm = getattr(block, f'norm{number}_name', None)
    conv = getattr(block, f'conv{number + 1}', None)
    if norm is None or not isinstance(getattr(block, norm), _BatchNorm):  # a group norm mixes neighbours
        return None
    if not isinstance(conv, nn.Conv2d) or conv.groups != 1 or getattr(block, 'with_plugins', False):
        return None
    if follower in parents or follower in parents.values() or twin.get_submodule(path).groups != 1:
        return None
    return f'{found.group(1)}.{norm}', follower


def best_order(similarity: Tensor) -> Tensor:
    """Which of the child's filters goes to each of the parent's, the sum of |similarity| being largest.

    Args:
        similarity (Tensor): (parent's filters, child's filters).

    Returns:
        Tensor: (C_out, ) of indices into the child's filters.
    """
    return torch.as_tensor(linear_sum_assignment(-similarity.abs().double().cpu().numpy())[1])


def kernel_similarity(parent: Tensor, kernel: Tensor) -> Tensor:
    """Cosine of each pair of filters, (C_out, C_out)."""
    return F.normalize(parent.flatten(1), dim=1) @ F.normalize(kernel.flatten(1), dim=1).T


@torch.no_grad()
def output_pairs(twin: nn.Module, parents: Mapping[str, str], run: Run, batches: Sequence[Tensor]) -> dict[str, list]:
    """For each child the outputs of the parent's kernel and of its own on the same input, at some positions.

    Returns:
        dict: path -> list of (parent's kernel (C_out, P), own kernel (C_out, P)), one per batch.
    """
    samples: dict[str, list] = {path: [] for path in parents}
    for batch in batches:
        with recorded(twin, parents) as calls:
            run(twin, batch)
        for path, parent in parents.items():
            conv, kernel = twin.get_submodule(path), twin.get_submodule(parent).weight
            for (x,), own in calls[path]:
                borrowed = conv._conv_forward(x, kernel, conv.bias)
                samples[path].append(tuple(_positions(t, POSITIONS // len(batches)) for t in (borrowed, own)))
    return samples


def correlation(pair: Sequence[Tensor]) -> Tensor:
    """Pearson correlation of each channel of the first with each of the second, (C, C)."""
    a, b = (F.normalize(t - t.mean(1, keepdim=True), dim=1) for t in pair)
    return a @ b.T


def relabel(twin: nn.Module, path: str, hidden: tuple[str, str], order: Tensor) -> None:
    """Move the filters of the conv at ``path``, its norm's channels and the next conv's inputs to ``order``, in place."""
    conv, (norm, follower) = twin.get_submodule(path), (twin.get_submodule(hidden[0]), twin.get_submodule(hidden[1]))
    with torch.no_grad():
        for tensor in [*conv.parameters(), *norm.parameters(), *norm.buffers()]:
            if tensor.dim():
                tensor.copy_(tensor[order].clone())
        follower.weight.copy_(follower.weight[:, order].clone())


def _positions(maps: Tensor, count: int) -> Tensor:
    flat = maps.transpose(0, 1).flatten(1)
    return flat[:, :: max(1, flat.shape[1] // count)]

"""Give the norms of changed blocks the statistics that they really see, and their branches the size that they should have."""
from contextlib import contextmanager
from typing import Callable, Dict, Iterable, Iterator, List, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .growth import last_norm
from .run import Run

TINY = 1e-12


def batch_norms(net: nn.Module, paths: Iterable[str]) -> List[_BatchNorm]:
    """The BatchNorms with running statistics below ``paths``, gates included, each once."""
    norms = {id(m): m for path in paths for m in net.get_submodule(path).modules()
             if isinstance(m, _BatchNorm) and m.track_running_stats and m.running_mean is not None}
    return list(norms.values())


@torch.no_grad()
def reestimate(net: nn.Module, norms: Sequence[_BatchNorm], run: Callable[[Tensor], object], batches: Sequence[Tensor],
               keep_function: bool = False) -> None:
    """Average the statistics of ``norms`` over ``batches``.

    Args:
        net (nn.Module): in evaluation mode.
        norms (Sequence): norms of ``net``.
        run: calls the net on one batch.
        batches (Sequence[Tensor]): images.
        keep_function (bool): change gamma and beta with them, so that the net computes what it did. For weights that were
            trained under the old statistics.
    """
    before = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]
    with _collecting(norms):
        for batch in batches:
            run(batch)
    for norm, (mean, var) in zip(norms, before):
        if norm.num_batches_tracked == 0 or not torch.isfinite(norm.running_var).all():  # the run does not reach it
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(var)
        elif keep_function and norm.weight is not None:
            _absorb(norm, mean, var)


@contextmanager
def _collecting(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    kept = [(norm.momentum, norm.training, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = None  # a plain average
        norm.reset_running_stats()
        norm.train()
    try:
        yield
    finally:
        for norm, (momentum, training, _) in zip(norms, kept):
            norm.momentum = momentum
            norm.train(training)


def _absorb(norm: _BatchNorm, mean: Tensor, var: Tensor) -> None:
    factor = norm.weight * (var + norm.eps).rsqrt()
    norm.bias.add_((norm.running_mean - mean) * factor)
    norm.weight.copy_(factor * (norm.running_var + norm.eps).sqrt())


class _Moments:
    """Sums over positions of two (N, C, ...) tensors, per channel, in double precision."""

    def __init__(self) -> None:
        self.count, self.sums = 0, 0

    def add(self, ours: Tensor, theirs: Tensor) -> None:
        ours, theirs = (t.double().transpose(0, 1).flatten(1) for t in (ours, theirs))
        self.count += ours.shape[1]
        self.sums = self.sums + torch.stack([ours.sum(1), theirs.sum(1), ours.square().sum(1), (ours * theirs).sum(1)])

    def line(self):
        """Factor and shift per channel that bring ours closest to theirs."""
        ours, theirs, square, product = self.sums / self.count
        factor = (product - ours * theirs) / (square - ours.square()).clamp_min(TINY)
        return factor, theirs - factor * ours


@torch.no_grad()
def match_branch(target: nn.Module, twin: nn.Module, block: str, run: Run, batches: Sequence[Tensor]) -> bool:
    """Set the affine of a block's last norm so that its branch comes closest to the dense one's, per channel.

    What a child's kernel does not know of the old output is noise in the sum with the shortcut: least squares takes away as
    much of it as helps. (On the kernel it would not: a norm and a ReLU are still to come.)

    Returns:
        bool: False for a block that does not end in such a norm.
    """
    name = last_norm(target.get_submodule(block))
    norm = target.get_submodule(f'{block}.{name}') if name else None
    if norm is None or getattr(norm, 'weight', None) is None:
        return False
    moments = _Moments()
    for batch in batches:
        theirs: List[Tensor] = []
        with _watching(twin.get_submodule(f'{block}.{name}'), lambda out: theirs.append(out.clone())):
            run(twin, batch)
        with _watching(norm, lambda out: moments.add(out, theirs.pop(0))):
            run(target, batch)
    factor, shift = moments.line()
    norm.bias.copy_(norm.bias.double() * factor + shift)
    norm.weight.copy_(norm.weight.double() * factor)
    return True


@contextmanager
def _watching(module: nn.Module, see: Callable[[Tensor], None]) -> Iterator[None]:
    def hook(module, args, output):
        see(output)  # at once: the sum with the shortcut is written over it

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def recalibrate(target: nn.Module, twin: nn.Module, blocks: Sequence[str], run: Run, batches: Sequence[Tensor]) -> None:
    """Block after block in forward order: statistics of its norms, then the size of its branch."""
    for block in blocks:
        reestimate(target, batch_norms(target, [block]), lambda batch: run(target, batch), batches)
        match_branch(target, twin, block, run, batches)

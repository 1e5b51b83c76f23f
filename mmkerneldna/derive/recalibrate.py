"""Give the norms of changed blocks the statistics that they really see, and their branches the size that they should have."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..modules import running_stats
from .growth import last_norm
from .run import Run

TINY = 1e-12


def batch_norms(net: nn.Module, paths: Iterable[str]) -> list[_BatchNorm]:
    """The BatchNorms with running statistics below ``paths``, gates included, each once."""
    norms = {
        id(m): m
        for path in paths
        for m in net.get_submodule(path).modules()
        if isinstance(m, _BatchNorm) and m.track_running_stats and m.running_mean is not None
    }
    return list(norms.values())


@torch.no_grad()
def reestimate(norms: Sequence[_BatchNorm], run: Callable[[Any], object], batches: Sequence[Any]) -> None:
    """Average the statistics of ``norms`` over ``batches``, each norm seeing what those before it give with theirs.

    Args:
        norms (Sequence): of a net in evaluation mode.
        run: calls that net on one batch.
        batches (Sequence): what ``run`` takes.
    """
    before = [[stats.clone() for stats in running_stats(norm)] for norm in norms]
    with _collecting(norms):
        for batch in batches:
            run(batch)
    for norm, (mean, var) in zip(norms, before):
        running_mean, running_var = running_stats(norm)
        if norm.num_batches_tracked == 0 or not torch.isfinite(running_var).all():  # the run does not reach it
            running_mean.copy_(mean)
            running_var.copy_(var)


@contextmanager
def _collecting(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    kept = [(norm.momentum, norm.training) for norm in norms]
    for norm in norms:
        norm.momentum = None  # a plain average
        norm.reset_running_stats()
        norm.train()
    try:
        yield
    finally:
        for norm, (momentum, training) in zip(norms, kept):
            norm.momentum = momentum
            norm.train(training)


@torch.no_grad()
def absorb(norms: Sequence[_BatchNorm], run: Callable[[Any], object], batches: Sequence[Any]) -> None:
    """True statistics for ``norms`` without a change of what the net computes: gamma and beta move with them.

    Weights that were trained under fixed statistics need just these numbers; a later training in training mode, and a reader
    of the statistics, need the true ones.

    Args:
        norms, run, batches: as in :func:`reestimate`.
    """
    moments: dict[_BatchNorm, _Moments] = {norm: _Moments() for norm in norms if norm.weight is not None}
    with ExitStack() as stack:
        for norm, sums in moments.items():
            stack.enter_context(watching(norm, sums.add_input))
        for batch in batches:
            run(batch)
    for norm, sums in moments.items():
        if sums.count > 1:
            _move(norm, *sums.mean_and_variance())


def _move(norm: _BatchNorm, mean: Tensor, var: Tensor) -> None:
    running_mean, running_var = running_stats(norm)
    factor = norm.weight.double() * (running_var.double() + norm.eps).rsqrt()
    norm.bias.add_((mean - running_mean) * factor)
    norm.weight.copy_(factor * (var + norm.eps).sqrt())
    running_mean.copy_(mean)
    running_var.copy_(var)


class _Moments:
    """Sums over positions of two (N, C, ...) tensors, per channel, in double precision."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: Any = 0  # (4, C) of the first call on

    def add(self, ours: Tensor, theirs: Tensor) -> None:
        ours, theirs = (t.double().transpose(0, 1).flatten(1) for t in (ours, theirs))
        self.count += ours.shape[1]
        self.sums = self.sums + torch.stack([ours.sum(1), theirs.sum(1), ours.square().sum(1), (ours * theirs).sum(1)])

    def add_input(self, args: tuple, _: Tensor) -> None:
        """What a norm takes, from a call of it."""
        self.add(args[0], args[0])

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:
        """Of ours per channel, the variance unbiased."""
        mean = self.sums[0] / self.count
        return mean, (self.sums[2] / self.count - mean.square()).clamp_min(0) * self.count / (self.count - 1)

    def line(self) -> tuple[Tensor, Tensor]:
        """Factor and shift per channel that bring ours closest to theirs."""
        ours, theirs, square, product = self.sums / self.count
        factor = (product - ours * theirs) / (square - ours.square()).clamp_min(TINY)
        return factor, theirs - factor * ours


class Recalibration:
    """Block after block in forward order: statistics of its norms, then the size of its branch.

    What a child's kernel does not know of the old output is noise in the sum with the shortcut; least squares on the affine of
    the branch's last norm takes away as much of it as helps. (On the kernel it would not: a norm and a ReLU are still to come.)

    Args:
        target, twin (nn.Module): in evaluation mode.
        run (Run): how to call both.
        batches (Sequence[Tensor]): images.
    """

    def __init__(self, target: nn.Module, twin: nn.Module, run: Run, batches: Sequence[Tensor]) -> None:
        self.target, self.twin, self.run, self.batches = target, twin, run, batches

    @torch.no_grad()
    def __call__(self, units: Mapping[str, str]) -> None:
        """Recalibrate blocks, each by calls of its unit, the block itself or a module around it."""
        norms = {
            block: f'{block}.{name}'
            for block, name in ((block, last_norm(self.target.get_submodule(block))) for block in units)
            if name
        }
        goals = self._branches(norms)
        for block, unit in units.items():
            module, inputs = self.target.get_submodule(unit), self._inputs(unit)
            reestimate(batch_norms(self.target, [block]), partial(_spread, module), inputs)
            if block in norms:
                self._match(self.target.get_submodule(norms[block]), module, inputs, goals[block])

    def _branches(self, norms: Mapping[str, str]) -> dict[str, list[Tensor]]:
        """The dense outputs of these norms, of all calls in turn."""
        seen: dict[str, list[Tensor]] = {block: [] for block in norms}
        with ExitStack() as stack:
            for block, path in norms.items():
                norm = self.twin.get_submodule(path)
                stack.enter_context(watching(norm, partial(_keep, seen[block])))
            for batch in self.batches:
                self.run(self.twin, batch)
        return seen

    def _inputs(self, unit: str) -> list[tuple]:
        """Arguments of all calls of ``unit`` in the target as it is now."""
        seen: list[tuple] = []
        with watching(self.target.get_submodule(unit), lambda args, _: seen.append(args)):
            for batch in self.batches:
                self.run(self.target, batch)
        return seen

    @staticmethod
    def _match(norm: nn.Module, unit: nn.Module, inputs: Sequence[tuple], goals: list[Tensor]) -> None:
        moments, goals = _Moments(), list(goals)
        with watching(norm, lambda _, out: moments.add(out, goals.pop(0))):
            for args in inputs:
                unit(*args)
        factor, shift = moments.line()
        norm.bias.copy_(norm.bias.double() * factor + shift)
        norm.weight.copy_(norm.weight.double() * factor)


def _spread(module: nn.Module, args: tuple) -> object:
    return module(*args)


def _keep(kept: list[Tensor], _: tuple, output: Tensor) -> None:
    kept.append(output.clone())


@contextmanager
def watching(module: nn.Module, see: Callable[[tuple, Tensor], None]) -> Iterator[None]:
    """Show the arguments and the output of each call at once: the sum with a shortcut is written over a norm's output."""
    handle = module.register_forward_hook(lambda _, args, output: see(args, output))
    try:
        yield
    finally:
        handle.remove()

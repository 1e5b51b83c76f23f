"""Layers that decide per input what is computed: how their decisions reach the loss of a model and its log.

One mechanism for all of them: a layer notes what its loss is computed from while a step collects (:func:`collect_losses`),
``RoutingLossHook`` puts the losses into the loss dict of any detector or segmenter, logs :meth:`Routed.rates` and moves
:meth:`Routed.anneal`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

R = TypeVar('R', bound='Routed')


def is_written() -> bool:
    """Whether the code that runs is being written down, traced or exported, for inputs to come.

    What one input decides must not become a constant there: everything is computed, and decisions choose of the results.
    """
    return torch.jit.is_tracing() or getattr(torch.compiler, 'is_exporting', torch.compiler.is_compiling)()


def ranked(x: Tensor, k: int, dim: int, descending: bool = True) -> Tensor:
    """Places of the k first in order along an axis, the first of equals before the others."""
    if torch.jit.is_tracing():  # ONNX has no stable sort, but its top-k takes the first of equals
        return x.topk(k, dim, largest=descending).indices
    return x.argsort(dim=dim, descending=descending, stable=True).narrow(dim, 0, k)


class Routed(nn.Module):
    """Base of layers with a loss of their own and rates to log.

    A subclass calls :meth:`note` in its forward pass with what the loss of this call is computed from, and defines
    :meth:`loss_of`. Not the loss itself is noted: activation checkpointing runs a forward pass twice, the second time after
    the losses were summed, and must find it doing the same.

    Attributes:
        loss_name (str): the model's loss dict gets ``loss_<loss_name>``, summed over all layers with this name; ``''`` where
            the layer's owner sees to its loss.
        loss_weight (float): of that loss, unless the hook has another.
        rate_name (str): the log gets ``<rate_name>_min`` and ``<rate_name>_max`` over all rates of these layers, and each
            rate as ``<first word of rate_name>/<path>[/<key>]``.
    """

    loss_name = ''
    loss_weight = 0.01
    rate_name = ''
    _collected: list[tuple[Any, ...]] | None = None  # None outside of a step: nothing is noted

    @property
    def collects(self) -> bool:
        """Whether a step collects losses right now."""
        return self._collected is not None

    def note(self, *facts: Any) -> None:
        """Keep what the loss of one call is computed from, if a step collects."""
        if self._collected is not None:
            self._collected.append(facts)

    def loss_of(self, *facts: Any) -> Tensor:
        """The loss of one call, a scalar, from what it noted."""
        raise NotImplementedError

    def rates(self) -> dict[str, float]:
        """What to log: parts between 0 and 1 by name; ``''`` for the only one of a layer."""
        return {}

    def anneal(self, progress: float) -> None:
        """Set what changes in the course of a training, from its progress in [0, 1] alone: a resumed run goes on."""

    @classmethod
    def total_loss(cls, layers: Sequence[Any]) -> Tensor:
        """Sum over layers, each averaged over its calls so far; zero if none was called."""
        called = [layer for layer in layers if layer._collected]
        if not called:
            return next(layers[0].parameters()).new_zeros(())
        return torch.stack([_mean_loss(layer) for layer in called]).sum()


def _mean_loss(layer: Routed) -> Tensor:
    return torch.stack([layer.loss_of(*facts) for facts in layer._collected or ()]).mean()


@contextmanager
def collect_losses(layers: Mapping[str, Routed]) -> Iterator[Callable[[], dict[str, Tensor]]]:
    """Collect the losses of ``layers`` during the block; outside of one they are not computed.

    Yields:
        Callable: returns {loss_name: loss, not weighted} of the calls so far; to be called inside the block.
    """
    for layer in layers.values():
        layer._collected = []

    def totals() -> dict[str, Tensor]:
        return {name: type(group[0]).total_loss(group) for name, group in by_loss(layers).items()}

    try:
        yield totals
    finally:
        for layer in layers.values():
            layer._collected = None


def by_loss(layers: Mapping[str, R]) -> dict[str, list[R]]:
    """{loss_name: layers}, in the order of ``layers``."""
    groups: dict[str, list[R]] = {}
    for layer in layers.values():
        if layer.loss_name:
            groups.setdefault(layer.loss_name, []).append(layer)
    return groups


def routed_layers(module: nn.Module) -> dict[str, Routed]:
    """{path: layer} of the layers in ``module`` that decide what is computed."""
    return {path: m for path, m in module.named_modules() if isinstance(m, Routed)}

"""The keep rate of a trained model: set to any value afterwards, measured, or lifted for a while.

set_keep(model, 0.5, images)  # thresholds that keep half on these images
with decisions(model) as seen:
    model.test_step(data)
seen.rates()                  # {gate: part that was kept}
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..anatomy import is_whole, unwrap
from ..errors import UsageError
from ..measure.undisturbed import undisturbed
from .gates import KeepGate, check_keep

#: passes over the images that look for a threshold; a gate sees other features once one before it decides otherwise
ROUNDS = 12
#: relative deviation of the keep rate that ends the search
CLOSE = 0.01

Batches = Tensor | Iterable[Tensor | Mapping[str, Any]]


def keep_gates(model: nn.Module) -> dict[str, KeepGate]:
    """{path: gate} of all gates in a model."""
    return {path: m for path, m in unwrap(model).named_modules() if isinstance(m, KeepGate)}


def asks(module: nn.Module) -> bool:
    """Whether a gate in a module is asked in inference; none is at a keep rate of 1."""
    return any(not gate.always_open for gate in keep_gates(module).values())


def set_keep(model: nn.Module, keep: float, images: Batches | None = None) -> float:
    """Move the threshold of all gates so that the part ``keep`` is computed on some images.

    One threshold for all gates: they were trained against one loss, so a logit means the same in each. Found by bisection,
    as every decision changes what the later gates see. ``keep=1`` needs no images: everything is computed, without asking
    the gates.

    Args:
        model (nn.Module): a backbone, or a whole detector or segmenter, with gates.
        keep (float): in (0, 1]; the mean over gates, weighted by their cost.
        images: (N, 3, H, W) as the backbone takes them; or a sequence of such tensors, or of batches as a data loader yields
            them.

    Returns:
        float: the keep rate on the images. With few images, or gates that hardly differ, no threshold may come closer.

    Raises:
        UsageError: ``keep`` outside (0, 1], a model without gates, no images for a keep below 1.
    """
    keep, gates = check_keep(keep), keep_gates(model)
    if not gates:
        raise UsageError(
            f'{type(unwrap(model)).__name__} has no gates whose keep rate could be set: build it with SkipBlocks or so'
        )
    if keep == 1:
        _set_all(gates, -math.inf)
        return 1.0
    batches = _as_batches(images)
    if not batches:
        raise UsageError(f'keep={keep:g} needs images to find the threshold that keeps so much')
    with undisturbed(model):
        reached = _search(model, gates, keep, batches)
    print_log(f'keep {keep:g}: {reached:.3f} is computed on {sum(map(_count, batches))} images', logger='current')
    return reached


class Decisions:
    """What the gates of a model decided since :func:`decisions` began to record.

    Args:
        gates: {path: gate}.
    """

    def __init__(self, gates: Mapping[str, KeepGate]) -> None:
        self.gates = gates

    def masks(self) -> dict[str, list[Tensor]]:
        """{path: one (N, 1, h, w) of bool per call}."""
        return {path: [seen > gate.threshold for seen in gate.seen or ()] for path, gate in self.gates.items()}

    def rates(self) -> dict[str, float]:
        """{path: part that was kept}, of the gates that were called."""
        flat = {path: [mask.flatten().float() for mask in masks] for path, masks in self.masks().items()}
        return {path: torch.cat(masks).mean().item() for path, masks in flat.items() if masks and sum(map(len, masks))}

    def rate(self) -> float:
        """Mean keep rate, weighted by cost; 1 if no gate was called."""
        rates = self.rates()
        costs = sum(self.gates[path].cost for path in rates)
        return sum(self.gates[path].cost * rate for path, rate in rates.items()) / costs if costs else 1.0

    def _logits(self) -> Tensor:
        return torch.cat([seen.flatten() for gate in self.gates.values() for seen in gate.seen or ()])


@contextmanager
def decisions(model: nn.Module) -> Iterator[Decisions]:
    """Record what the gates of a model decide in inference."""
    gates = keep_gates(model)
    for gate in gates.values():
        gate.seen = []
    try:
        yield Decisions(gates)
    finally:
        for gate in gates.values():
            gate.seen = None


@contextmanager
def keep_all(model: nn.Module) -> Iterator[None]:
    """Everything is computed in inference, whatever the gates say: what deploying and exporting look at."""
    gates = keep_gates(model).values()
    before = [gate._forced for gate in gates]
    for gate in gates:
        gate._forced = True
    try:
        yield
    finally:
        for gate, forced in zip(gates, before):
            gate._forced = forced


def _search(model: nn.Module, gates: Mapping[str, KeepGate], keep: float, batches: Sequence[Any]) -> float:
    _set_all(gates, -math.inf)
    low, high = _range_of_logits(model, batches)
    best = (math.inf, 0.0, 1.0)  # distance, threshold, rate
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        _set_all(gates, middle)
        rate = _rate(model, batches)
        best = min(best, (abs(rate - keep), middle, rate))
        if best[0] <= CLOSE * keep:
            break
        low, high = (middle, high) if rate > keep else (low, middle)
    _set_all(gates, best[1])
    return best[2]


def _set_all(gates: Mapping[str, KeepGate], threshold: float) -> None:
    for gate in gates.values():
        gate.set_threshold(threshold)


def _range_of_logits(model: nn.Module, batches: Sequence[Any]) -> tuple[float, float]:
    with decisions(model) as seen:
        for batch in batches:
            _run(model, batch)
        logits = seen._logits()
    if not logits.numel():
        raise UsageError(f'no gate of {type(unwrap(model)).__name__} was called by the images')
    margin = 1 + (logits.max() - logits.min()).item()  # later gates may see more than they do with all computed
    return logits.min().item() - margin, logits.max().item() + margin


def _rate(model: nn.Module, batches: Sequence[Any]) -> float:
    with decisions(model) as seen:
        for batch in batches:
            _run(model, batch)
        return seen.rate()


def _run(model: nn.Module, batch: Any) -> None:
    """Up to the features, and the gates of the heads behind them."""
    inner: Any = unwrap(model)
    if not isinstance(batch, Tensor):
        batch = inner.data_preprocessor(batch, False)['inputs']
    batch = batch.to(next(inner.parameters()).device)
    features = inner.extract_feat(batch) if is_whole(inner) else inner(batch)
    for head in inner.modules():
        if hasattr(head, 'ask_gates'):
            head.ask_gates(features)


def _as_batches(images: Batches | None) -> list[Any]:
    return [] if images is None else [images] if isinstance(images, Tensor) else list(images)


def _count(batch: Any) -> int:
    return len(batch if isinstance(batch, Tensor) else batch['inputs'])

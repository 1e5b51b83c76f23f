"""The losses of layers that decide what is computed, handed to the losses of any detector or segmenter."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ..anatomy import unwrap
from ..layers.routed import Routed, by_loss, collect_losses, routed_layers


@HOOKS.register_module()
class RoutingLossHook(Hook):
    """Adds ``loss_<name>`` to the loss dict of a model with layers that route, anneals them, and logs what they do.

    Mixtures of experts have a balance loss, gates one of their keep rate. While a run trains, the model's ``loss`` (which
    mmdet's detectors and mmseg's segmenters compute their loss dict with) is wrapped: the model class stays as it is, and the
    loss is computed inside ``forward``, so under AMP and DDP too. Logged are, with the losses, ``<rate>_min`` and
    ``<rate>_max`` over all layers of a kind (``moe_share_min``, ``keep_rate_max``), and with the visualizer every rate of
    every layer (``moe/<layer>/expert<i>``, ``keep/<gate>``). The tools add this hook to a model with such layers.

    Args:
        weight (float | dict, optional): of the losses: one for all, or by name (``dict(keep_rate=2.0)``). By default each
            kind's own.
        interval (int): iterations between logs. Defaults to 50.

    Raises:
        ValueError: a negative ``weight``; when training starts: no such layer in the model, a weight for a loss that none
            has, or no method ``loss``.
    """

    priority = 'ABOVE_NORMAL'  # before the hook that writes the log
    wanted: type[Routed] = Routed
    advice = (
        "layer that routes: put one in, for instance with backbone=dict(type='SkipBlocks', keep=0.5, module=...), "
        'or remove the hook'
    )

    def __init__(self, weight: float | Mapping[str, float] | None = None, interval: int = 50) -> None:
        values = weight.values() if isinstance(weight, Mapping) else [weight or 0]
        if any(value < 0 for value in values):
            raise ValueError(f'weight={weight} of {type(self).__name__} must not be negative')
        self.weight, self.interval = weight, interval
        self._layers: dict[str, Routed] = {}
        self._model: Any = None  # from before_train to after_train
        self._own: Callable[..., Any] | None = None  # a loss that was put into the model before, as a distillation's

    def before_train(self, runner) -> None:
        """Wrap the model's ``loss``."""
        model: Any = unwrap(runner.model)
        layers = routed_layers(model)
        if not any(isinstance(layer, self.wanted) for layer in layers.values()):
            raise ValueError(f'{type(self).__name__} found no {self.advice}')
        if not callable(getattr(model, 'loss', None)):
            raise ValueError(
                f'{type(self).__name__} needs a model with a method loss() that returns a dict, {type(model).__name__} has none'
            )
        weights = self._weights(layers)
        self._own = vars(model).get('loss')
        model.loss = _wrapped(model.loss, layers, weights)
        self._model, self._layers = model, layers

    def _weights(self, layers: Mapping[str, Routed]) -> dict[str, float]:
        own = {name: group[0].loss_weight for name, group in by_loss(layers).items()}
        if not isinstance(self.weight, Mapping):
            return own if self.weight is None else dict.fromkeys(own, self.weight)
        unknown = sorted(set(self.weight) - set(own))
        if unknown:
            raise ValueError(f'{type(self).__name__}: the model has no loss named {unknown}; it has {sorted(own)}')
        return {**own, **self.weight}

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Set what is annealed."""
        progress = min(runner.iter / max(runner.max_iters, 1), 1.0)
        for layer in self._layers.values():
            layer.anneal(progress)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Log the rates."""
        if not self.every_n_train_iters(runner, self.interval):
            return
        scalars: dict[str, float] = {}
        groups: dict[str, list[float]] = {}
        for path, layer in self._layers.items():
            rates = layer.rates()
            groups.setdefault(layer.rate_name, []).extend(rates.values())
            folder = layer.rate_name.split('_')[0]
            scalars.update({'/'.join(filter(None, (folder, path, key))): value for key, value in rates.items()})
        for name, values in groups.items():
            if values:
                runner.message_hub.update_scalar(f'train/{name}_min', min(values))
                runner.message_hub.update_scalar(f'train/{name}_max', max(values))
        runner.visualizer.add_scalars(scalars, step=runner.iter + 1)

    def after_train(self, runner) -> None:
        """Give the model its own ``loss`` back."""
        if self._model is not None:
            del self._model.loss
            if self._own is not None:
                self._model.loss = self._own
            self._model, self._layers = None, {}


def _wrapped(loss: Callable[..., Any], layers: Mapping[str, Routed], weights: Mapping[str, float]) -> Callable[..., Any]:

    def loss_with_routing(*args, **kwargs) -> dict[str, torch.Tensor]:
        with collect_losses(layers) as totals:
            losses = loss(*args, **kwargs)
            losses.update({f'loss_{name}': weights[name] * total for name, total in totals().items()})
        return losses

    return loss_with_routing

"""The balance loss of mixture-of-experts convolutions, handed to the losses of any detector or segmenter."""

from collections.abc import Callable
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ..anatomy import unwrap
from ..layers.moe_conv import collect_balance_losses, moe_layers

LOSS_KEY = 'loss_moe_balance'


@HOOKS.register_module()
class MoELossHook(Hook):
    """Adds ``loss_moe_balance`` to the loss dict of a model with ``MoEConv2d`` layers and logs how the experts are used.

    While a run trains, the model's ``loss`` (which mmdet's detectors and mmseg's segmenters compute their loss dict with) is
    wrapped: the model class stays as it is, and the loss is computed inside ``forward``, so under AMP and DDP too. Logged
    are ``moe_share_min`` and ``moe_share_max``, over all experts of all layers, with the losses, and the share of every
    expert as ``moe/<layer>/expert<i>`` with the visualizer.

    Args:
        weight (float): of the loss, which is summed over layers and 1 per layer when balanced. Defaults to 0.01 (Switch
            Transformers).
        interval (int): iterations between logs. Defaults to 50.

    Raises:
        ValueError: a negative ``weight``; when training starts: no ``MoEConv2d`` in the model, or no method ``loss``.
    """

    priority = 'ABOVE_NORMAL'  # before the hook that writes the log

    def __init__(self, weight: float = 0.01, interval: int = 50) -> None:
        if weight < 0:
            raise ValueError(f'weight={weight} of MoELossHook must not be negative')
        self.weight, self.interval = weight, interval
        self._model: Any = None  # from before_train to after_train
        self._own: Callable[..., Any] | None = None  # a loss that was put into the model before, as a distillation's

    def before_train(self, runner) -> None:
        """Wrap the model's ``loss``."""
        model = unwrap(runner.model)
        layers = moe_layers(model)
        if not layers:
            raise ValueError(
                'MoELossHook found no MoEConv2d in the model: swap some in, for instance with '
                "backbone=dict(type='DynamicConvs', conv=dict(type='MoEConv2d'), module=...), or remove the "
                'hook'
            )
        if not callable(getattr(model, 'loss', None)):
            raise ValueError(
                f'MoELossHook needs a model with a method loss() that returns a dict, {type(model).__name__} has none'
            )
        self._own = vars(model).get('loss')
        model.loss = self._wrapped(model.loss, layers)
        self._model = model

    def _wrapped(self, loss, layers):

        def loss_with_balance(*args, **kwargs) -> dict[str, torch.Tensor]:
            with collect_balance_losses(layers) as total:
                losses = loss(*args, **kwargs)
                losses[LOSS_KEY] = self.weight * total()
            return losses

        return loss_with_balance

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Log the shares."""
        if not self.every_n_train_iters(runner, self.interval):
            return
        shares = {path: layer.share.tolist() for path, layer in moe_layers(self._model).items()}
        values = [value for share in shares.values() for value in share]
        runner.message_hub.update_scalar('train/moe_share_min', min(values))
        runner.message_hub.update_scalar('train/moe_share_max', max(values))
        scalars = {f'moe/{path}/expert{i}': v for path, share in shares.items() for i, v in enumerate(share)}
        runner.visualizer.add_scalars(scalars, step=runner.iter + 1)

    def after_train(self, runner) -> None:
        """Give the model its own ``loss`` back."""
        if self._model is not None:
            del self._model.loss
            if self._own is not None:
                self._model.loss = self._own
            self._model = None

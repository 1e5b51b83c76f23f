"""Temperature schedule of dynamic convolutions."""
import math
from typing import List

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop
from torch import nn

#: from progress in [0, 1] to the part of the way from start to end
SCHEDULES = dict(linear=lambda t: t, cosine=lambda t: (1 - math.cos(math.pi * t)) / 2)


def layers_with_temperature(module: nn.Module) -> List[nn.Module]:
    """The convolutions whose attention has a temperature: modules with a kernel size and a float ``temperature``."""
    return [m for m in module.modules() if hasattr(m, 'kernel_size') and isinstance(getattr(m, 'temperature', None), float)]


@HOOKS.register_module()
class TemperatureHook(Hook):
    """Moves the ``temperature`` of every dynamic convolution from ``start`` to ``end`` during warm-up, and logs it.

    It is set before every iteration from the iteration alone, so a resumed run goes on where it was. The papers' schedules
    are linear: DyConv2d and ODConv2d from 30 to 1 over 10 epochs, KWConv2d from 1 to 0 over 20 of 300 (15 of 150)::

        custom_hooks = [dict(type='TemperatureHook', start=30, end=1, length=10)]

    Args:
        start (float): temperature before the first iteration.
        end (float): temperature from the end of the warm-up on.
        length (int): of the warm-up, in epochs, or in iterations where ``by_epoch`` is false.
        by_epoch (bool): unit of ``length``. Defaults to True.
        schedule (str): ``'linear'`` or ``'cosine'``. Defaults to ``'linear'``.

    Raises:
        ValueError: an unknown ``schedule`` or a ``length`` below 1; when training starts: no layer with a temperature,
            a temperature that a layer refuses, or ``by_epoch`` under a loop that counts iterations.
    """

    priority = 'ABOVE_NORMAL'

    def __init__(self, start: float, end: float, length: int, by_epoch: bool = True, schedule: str = 'linear') -> None:
        if schedule not in SCHEDULES:
            raise ValueError(f'schedule={schedule!r} must be one of {", ".join(map(repr, SCHEDULES))}')
        if length < 1:
            raise ValueError(f'length={length} of the temperature warm-up must be at least 1')
        self.start, self.end, self.length, self.by_epoch = start, end, length, by_epoch
        self.schedule = schedule

    def before_train(self, runner) -> None:
        """Find the layers and check that they take both ends of the schedule."""
        self._layers = layers_with_temperature(runner.model)
        if not self._layers:
            raise ValueError('TemperatureHook found no layer with a temperature (DyConv2d, ODConv2d, KWConv2d, ...) in the '
                             'model: remove the hook, or check which convolutions were swapped')
        if self.by_epoch and not isinstance(runner.train_loop, EpochBasedTrainLoop):
            raise ValueError(f'TemperatureHook(length={self.length}) counts epochs, but the run counts iterations: set '
                             'by_epoch=False and give length in iterations')
        for value in (self.end, self.start):
            self._set(value)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Set and log the temperature of this iteration."""
        steps = self.length * len(runner.train_dataloader) if self.by_epoch else self.length
        value = self.temperature_at(runner.iter, steps)
        self._set(value)
        runner.message_hub.update_scalar('train/temperature', value)

    def temperature_at(self, iteration: int, steps: int) -> float:
        """Temperature of ``iteration``, counted from 0, in a warm-up of ``steps`` iterations."""
        done = SCHEDULES[self.schedule](min(iteration / steps, 1.0))
        return self.start + (self.end - self.start) * done

    def _set(self, value: float) -> None:
        for layer in self._layers:
            layer.temperature = float(value)

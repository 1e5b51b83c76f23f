"""Temperature schedule of dynamic convolutions."""

import math
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop
from torch import nn

#: from progress in [0, 1] to the part of the way from start to end
SCHEDULES = dict(linear=lambda t: t, cosine=lambda t: (1 - math.cos(math.pi * t)) / 2)
WARMUP_PART, MAX_WARMUP = 1 / 3, 16000  # of a run; the latter in iterations, where the run is counted in them


def layers_with_temperature(module: nn.Module) -> list[nn.Module]:
    """The convolutions whose attention has a temperature: modules with a kernel size and a float ``temperature``."""
    return [m for m in module.modules() if hasattr(m, 'kernel_size') and isinstance(getattr(m, 'temperature', None), float)]


@HOOKS.register_module()
class TemperatureHook(Hook):
    """Moves the ``temperature`` of every dynamic convolution along its schedule during warm-up, and logs it.

    The tools add this hook to a training whose model has such layers, unless the config has one of its own. By default the
    ends are those of each layer's paper (``temperature_schedule`` of its class: DyConv2d and ODConv2d from 30 to 1, KWConv2d
    from 1 to 0), and the warm-up is a third of the run: 4 of 12 epochs; of a run that counts iterations at most 16,000, a
    tenth of 160 k. The papers, over 100 to 300 epochs of ImageNet, take 10 to 20. To choose otherwise::

        custom_hooks = [dict(type='TemperatureHook', start=30, end=1, length=10)]

    The temperature is set before every iteration from the iteration alone, so a resumed run goes on where it was.

    Args:
        start (float, optional): temperature before the first iteration.
        end (float, optional): temperature from the end of the warm-up on.
        length (int, optional): of the warm-up, in epochs, or in iterations where ``by_epoch`` is false.
        by_epoch (bool): unit of ``length``. Defaults to True.
        schedule (str): ``'linear'`` or ``'cosine'``. Defaults to ``'linear'``.

    Raises:
        ValueError: an unknown ``schedule``, a ``length`` below 1, one end without the other; when training starts: no
            layer with a temperature, one without a schedule of its own or that refuses the one given, or ``length`` in
            epochs under a loop that counts iterations.
    """

    priority = 'ABOVE_NORMAL'

    def __init__(
        self,
        start: float | None = None,
        end: float | None = None,
        length: int | None = None,
        by_epoch: bool = True,
        schedule: str = 'linear',
    ) -> None:
        if schedule not in SCHEDULES:
            raise ValueError(f'schedule={schedule!r} must be one of {", ".join(map(repr, SCHEDULES))}')
        if length is not None and length < 1:
            raise ValueError(f'length={length} of the temperature warm-up must be at least 1')
        if (start is None) != (end is None):
            raise ValueError(f'TemperatureHook(start={start}, end={end}) needs both ends, or none for those of the layers')
        self.ends = None if start is None or end is None else (start, end)
        self.length, self.by_epoch, self.schedule = length, by_epoch, schedule

    def before_train(self, runner) -> None:
        """Find the layers and check that they take both ends of their schedule."""
        layers = layers_with_temperature(runner.model)
        if not layers:
            raise ValueError(
                'TemperatureHook found no layer with a temperature (DyConv2d, ODConv2d, KWConv2d, ...) in the '
                'model: remove the hook, or check which convolutions were swapped'
            )
        if self.length and self.by_epoch and not isinstance(runner.train_loop, EpochBasedTrainLoop):
            raise ValueError(
                f'TemperatureHook(length={self.length}) counts epochs, but the run counts iterations: set '
                'by_epoch=False and give length in iterations'
            )
        self._layers: list[tuple[Any, tuple[float, float]]] = [(layer, self.ends or _own_schedule(layer)) for layer in layers]
        for progress in (1, 0):
            self._set(progress)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Set the temperatures of this iteration and log the first layer's."""
        progress = SCHEDULES[self.schedule](min(runner.iter / self._warmup(runner), 1.0))
        runner.message_hub.update_scalar('train/temperature', self._set(progress))

    def _warmup(self, runner) -> float:
        """Iterations of the warm-up."""
        if self.length is not None:
            return self.length * len(runner.train_dataloader) if self.by_epoch else self.length
        part = runner.max_iters * WARMUP_PART
        return part if isinstance(runner.train_loop, EpochBasedTrainLoop) else min(part, MAX_WARMUP)

    def _set(self, progress: float) -> float:
        for layer, (start, end) in self._layers:
            layer.temperature = float(start + (end - start) * progress)
        return self._layers[0][0].temperature


def _own_schedule(layer: nn.Module) -> tuple[float, float]:
    schedule = getattr(layer, 'temperature_schedule', None)
    if schedule is None:
        raise ValueError(
            f'{type(layer).__name__} has a temperature and no temperature_schedule: give TemperatureHook(start=..., end=...)'
        )
    return schedule

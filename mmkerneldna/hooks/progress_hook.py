"""A hook that tells a display where a run is."""

import time
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from ..runs.progress import Step
from ..runs.scores import describe_scores


class ProgressHook(Hook):
    """Steps, losses and scores of a run, for a person.

    It belongs to a tool, not to a config: register it on the Runner.

    Args:
        display: of :mod:`mmkerneldna.runs.progress`; it gets ``step`` after each iteration, and ``say`` with the scores of
            each evaluation.
    """

    # After every hook that adds to the metrics or to the loss.
    priority = 'LOWEST'

    def __init__(self, display) -> None:
        self.display = display
        self._score = ''
        self._began = 0.0
        self._first = 0

    def before_train(self, runner: Runner) -> None:
        """A resumed run begins in the middle."""
        self._began, self._first = time.monotonic(), runner.iter

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None) -> None:
        """One more training iteration; time spent in evaluations counts."""
        history = runner.message_hub.log_scalars.get('train/loss')
        loss = None if history is None else float(history.mean(10))
        self._step('train', runner.iter + 1, runner.max_iters, self._first, loss)

    def before_val_epoch(self, runner: Runner) -> None:
        """The iterations of an evaluation have a time of their own."""
        self._evaluation_began = time.monotonic()

    before_test_epoch = before_val_epoch

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """One more batch evaluated."""
        self._evaluation_step('val', batch_idx + 1, len(runner.val_dataloader))

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """One more batch tested."""
        self._evaluation_step('test', batch_idx + 1, len(runner.test_dataloader))

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Say the scores of a validation, and when in the training they were."""
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        self._say(f'epoch {runner.epoch}' if by_epoch else f'iteration {runner.iter}', metrics)

    def after_test_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Say the scores of a test."""
        self._say('test', metrics)

    def _evaluation_step(self, phase: str, done: int, total: int) -> None:
        seconds = (time.monotonic() - self._evaluation_began) / done * (total - done)
        self.display.step(Step(phase, done, total, None, self._score, seconds))

    def _step(self, phase: str, done: int, total: int, first: int, loss: float | None) -> None:
        seconds = (time.monotonic() - self._began) / (done - first) * (total - done)
        self.display.step(Step(phase, done, total, loss, self._score, seconds))

    def _say(self, where: str, metrics: dict | None) -> None:
        metrics = metrics or {}
        self._score = describe_scores(metrics)
        latency = metrics.get('cost/latency_ms')
        parameters = metrics.get('cost/unique_params_m')
        parts = [
            self._score or 'no score',
            f'{latency:.1f} ms per call' if latency else '',
            f'{parameters:.3f} M parameters' if parameters else '',
        ]
        self.display.say(f'  {where}: {", ".join(filter(None, parts))}')

"""Every score travels with its cost: a hook that puts the cost of the model into the metrics of each evaluation."""

import logging
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from ..anatomy import augments, is_exported, rewrap, undistributed, unwrap
from ..measure.complexity import complexity_row, deployed_row
from ..measure.environment import describe, environment
from ..measure.latency import Failure, attempt
from ..measure.memory import peak_memory_mb, weight_bytes
from ..measure.over_images import Spread, gmacs_over_images, keep_rates, time_over_images
from ..measure.tables import write_json
from ..measure.undisturbed import undisturbed
from ..measure.workload import Call, Workload, inference_call
from ..routing.keep import keep_gates
from .empty_scores import fill_empty_scores

Views = tuple[tuple[int, int], ...]

PREFIX = 'cost/'
FILE_NAME = 'cost.json'


@HOOKS.register_module()
class CostHook(Hook):
    """Adds ``cost/latency_ms``, ``cost/gmacs``, ... to the metrics of every validation and test.

    They are in the same dict as mAP or mIoU, before any other hook reads it: logs, TensorBoard and JSON have both, and
    ``save_best`` may name either. The keys, all with the prefix ``cost/``:

    - ``latency_ms``, ``latency_p90_ms``, ``throughput_img_s``: of ``test_step`` (images on the CPU, preprocessing,
      network, post-processing), as the model is evaluated: its device, its weights (EMA's too), fp32 or the loop's
      autocast.
    - ``repeats``: how many calls were timed; ``disturbed``: 1 where these show that the machine was busy with something
      else, even when measured again (see :mod:`.clock`), else 0. Then the latency is not a fact.
    - ``gmacs``, ``unique_params_m``, ``deployed_params_m``: see :mod:`.complexity`. Of a deployed model the last one is what
      the copy holds, the others are counted on the trained one.
    - ``peak_memory_mb``: see :mod:`.memory`. Of an exported file ``file_mb``, its size, instead.
    - ``height``, ``width``, ``batch``: what it was measured at.

    A model whose gates leave parts out (:mod:`mmkerneldna.routing`) costs more on one image than on another. It is measured on
    ``images`` images, spread over the evaluated data set: ``latency_ms`` is then the median across images and
    ``latency_p90_ms`` the 90th percentile across them, ``gmacs`` the mean of what was run, and there are

    - ``latency_mean_ms``: across images; ``images``: how many they were.
    - ``keep_rate``, ``keep/<gate>``: the part that was computed, and that of each gate.

    With test-time augmentation a call is the prediction from all views of an image, and ``gmacs`` are their sum.

    The training goes on as if nothing had been measured: random states, each module's mode and gradients stay. In a
    distributed run rank 0 measures, the others wait, and all get the same numbers. An evaluation without any detection
    counts as AP 0 (see :mod:`.empty_scores`). A measurement that fails is a warning, not the end of the training.
    Numbers and environment also go into ``cost.json`` next to the log.

    Latencies of separate runs are comparable as far as their machine was idle; for ratios use ``tools/benchmark.py``.

    Args:
        size (tuple[int, int], optional): H, W of synthetic images (not with test-time augmentation). By default the first
            image of the evaluated data set is used, as its pipeline makes it.
        batch (int): images per call.
        repeats, warmup (int): calls that are timed, and calls before.
        budget_s (float): seconds that timing may take per evaluation. A slow model gets fewer repeats, but at least one and
            one call to warm up. GMACs and memory take two more calls, once per run.
        images (int): on which a model with gates is measured.
    """

    # Before RuntimeInfoHook (VERY_HIGH), which copies the metrics to the message hub where loggers find them.
    priority = 'HIGHEST'

    def __init__(
        self,
        size: tuple[int, int] | None = None,
        batch: int = 1,
        repeats: int = 10,
        warmup: int = 3,
        budget_s: float = 20.0,
        images: int = 16,
    ) -> None:
        if batch < 1 or repeats < 1 or warmup < 0 or images < 1:
            raise ValueError(
                f'batch={batch}, repeats={repeats} and images={images} must be at least 1, warmup={warmup} at least 0'
            )
        if not budget_s > 0:
            raise ValueError(f'budget_s={budget_s} must be a positive number of seconds')
        self.size = (size[0], size[1]) if size is not None else None
        self.batch, self.images = batch, images
        self.timing: dict[str, Any] = dict(repeats=repeats, warmup=warmup, budget_s=budget_s)
        self._static: dict[tuple, dict[str, float]] = {}  # what one model costs at any time
        self._environment: dict[str, str] = {}

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Complete the metrics of a validation."""
        self._complete(runner, metrics, runner.val_loop)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Complete the metrics of a test."""
        self._complete(runner, metrics, runner.test_loop)

    def _complete(self, runner: Runner, metrics: dict[str, float] | None, loop) -> None:
        if metrics is None:
            return
        added = fill_empty_scores(metrics, loop.evaluator)
        if added:
            print_log(f'not a single detection: {", ".join(added)} set to 0', logger='current', level=logging.WARNING)
        shared: list[Any] = [self._measure_or_warn(runner, loop) if is_main_process() else None]
        broadcast_object_list(shared)
        metrics.update(shared[0])

    def _measure_or_warn(self, runner: Runner, loop) -> dict[str, float]:
        model = undistributed(runner.model)
        device = next((p.device for p in model.parameters()), torch.device('cpu'))  # an exported file has none
        measured = attempt(lambda: self._measure(model, loop, str(device)), device)
        if isinstance(measured, Failure):
            print_log(
                f'the cost of the model could not be measured, {measured.kind}: {measured.message}',
                logger='current',
                level=logging.WARNING,
            )
            return {}
        timing, cost = measured
        self._say(timing)
        if not self._environment:
            self._environment = environment(device)
            print_log(f'cost is measured with: {describe(self._environment)}', logger='current')
        write_json(
            Path(runner.log_dir) / FILE_NAME, dict(environment=self._environment, cost=cost, disturbed=timing.disturbed or None)
        )
        return cost

    def _say(self, timing: Spread) -> None:
        wanted, budget_s = self.timing['repeats'], self.timing['budget_s']
        if timing.repeats < wanted:
            print_log(
                f'{PREFIX}latency_ms is the median of {timing.repeats} calls: {wanted} do not fit into '
                f'budget_s={budget_s:g} of CostHook',
                logger='current',
            )
        if timing.disturbed:
            print_log(
                f'{PREFIX}latency_ms is not what an idle machine would show: {timing.disturbed}',
                logger='current',
                level=logging.WARNING,
            )

    def _measure(self, model: nn.Module, loop, device: str) -> tuple[Spread, dict[str, float]]:
        with undisturbed(model):
            batches = self._batches(model, loop.dataloader.dataset)
            views = batches[0][1]
            dtype = torch.get_autocast_dtype(torch.device(device).type) if loop.fp16 else None
            calls = self._calls(model, batches, device, dtype)
            timing = time_over_images({'model': calls}, device, **self.timing)['model']
            if isinstance(timing, Failure):
                raise RuntimeError(str(timing))
            cells: dict[str, Any] = dict(
                latency_ms=timing.median,
                latency_p90_ms=timing.p90,
                throughput_img_s=self.batch * 1e3 / timing.mean,
                repeats=timing.repeats,
                disturbed=bool(timing.disturbed),
            )
            if (views, dtype) not in self._static:
                self._static[views, dtype] = {**_size_cells(unwrap(model), views), **_memory_cells(calls[0], model, device)}
            cells.update(self._static[views, dtype], height=views[0][0], width=views[0][1], batch=self.batch)
            if keep_gates(model):
                counted = rewrap(model, *getattr(unwrap(model), 'deployed_from', (unwrap(model),)))
                gmacs = gmacs_over_images(self._calls(counted, batches, device, dtype))
                cells.update(gmacs=gmacs, latency_mean_ms=timing.mean, images=len(calls), **keep_rates(model, calls))
        # All float: mmengine's JSON of a test drops integers.
        return timing, {PREFIX + key: float(value) for key, value in cells.items()}

    def _calls(self, model: nn.Module, batches, device: str, dtype: torch.dtype | None) -> list[Call]:
        return [inference_call(model, Workload(self.batch, views[0], device, dtype), data) for data, views in batches]

    def _batches(self, model: nn.Module, dataset) -> list[tuple[dict | None, Views]]:
        """What the data loader would yield for one image, or for several where they cost differently; H, W of their views."""
        if self.size is not None and not augments(model):
            return [(None, (self.size,))]
        count = min(self.images, len(dataset)) if keep_gates(model) else 1
        return [self._batch(model, dataset[index * len(dataset) // count]) for index in range(count)]

    def _batch(self, model: nn.Module, sample: dict) -> tuple[dict, Views]:
        if not augments(model):
            data = {key: [sample[key]] * self.batch for key in ('inputs', 'data_samples')}
            return data, (tuple(sample['inputs'].shape[-2:]),)
        data = {key: [[view] * self.batch for view in sample[key]] for key in ('inputs', 'data_samples')}
        return data, tuple(tuple(view.shape[-2:]) for view in sample['inputs'])


def _size_cells(model: nn.Module, views: tuple[tuple[int, int], ...]) -> dict[str, float]:
    """GMACs of all views, and parameters. What can't be counted is left out, and said."""
    # A deployed model's kernels are inside compiled functions: count on the one it was made from.
    (counted,) = getattr(model, 'deployed_from', (model,))
    known: dict[tuple[int, int], dict[str, float]] = {}
    for size in dict.fromkeys(views):
        row = attempt(partial(complexity_row, counted, size))
        if isinstance(row, Failure):
            print_log(f'GMACs can not be counted, {row}', logger='current', level=logging.WARNING)
            return {}
        known[size] = row
    first = {**known[views[0]], **deployed_row(model)}
    return {**first, 'gmacs': sum(known[size]['gmacs'] for size in views)} if 'gmacs' in first else first


def _memory_cells(call: Call, model: nn.Module, device: str) -> dict[str, float]:
    if is_exported(model):  # its runtime's memory is not seen from here
        return dict(file_mb=cast(Any, model).file_mb)
    peak = attempt(lambda: peak_memory_mb(call, weight_bytes(model), device), device)
    return {} if peak is None or isinstance(peak, Failure) else dict(peak_memory_mb=peak)

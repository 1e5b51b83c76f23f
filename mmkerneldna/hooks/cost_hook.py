"""Every score travels with its cost: a hook that puts the cost of the model into the metrics of each evaluation."""
import logging
from pathlib import Path
from typing import Any, Dict, Optional, Tuple, Union

import torch
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from ..measure.complexity import complexity_row
from .empty_scores import fill_empty_scores
from ..measure.environment import describe, environment
from ..measure.latency import Failure, attempt, time_interleaved
from ..measure.memory import peak_memory_mb, weight_bytes
from ..measure.tables import write_json
from ..measure.undisturbed import undisturbed
from ..measure.workload import Call, Workload, inference_call

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
    - ``gmacs``, ``unique_params_m``, ``deployed_params_m``: counted once per run, see :mod:`.complexity`.
    - ``peak_memory_mb``: see :mod:`.memory`.
    - ``height``, ``width``, ``batch``: what it was measured at.

    The training goes on as if nothing had been measured: random states, each module's mode and gradients stay. In a
    distributed run rank 0 measures, the others wait, and all get the same numbers. An evaluation without any detection
    counts as AP 0 (see :mod:`.empty_scores`). A measurement that fails is a warning, not the end of the training.
    Numbers and environment also go into ``cost.json`` next to the log.

    Latencies of separate runs are comparable as far as their machine was idle; for ratios use ``tools/benchmark.py``.

    Args:
        size (tuple[int, int], optional): H, W of synthetic images. By default the first image of the evaluated data
            set is used, as its pipeline makes it.
        batch (int): images per call.
        repeats, warmup (int): calls that are timed, and calls before; an evaluation takes that much longer, and two
            calls more (memory, and once the count of GMACs).
    """

    # Before RuntimeInfoHook (VERY_HIGH), which copies the metrics to the message hub where loggers find them.
    priority = 'HIGHEST'

    def __init__(self, size: Optional[Tuple[int, int]] = None, batch: int = 1, repeats: int = 10,
                 warmup: int = 3) -> None:
        if batch < 1 or repeats < 1 or warmup < 0:
            raise ValueError(f'batch={batch} and repeats={repeats} must be at least 1, warmup={warmup} at least 0')
        self.size = tuple(size) if size is not None else None
        self.batch = batch
        self.timing = dict(repeats=repeats, warmup=warmup)
        self._complexity: Dict[Tuple[int, int], Union[Dict[str, float], Failure]] = {}
        self._environment: Dict[str, str] = {}

    def after_val_epoch(self, runner: Runner, metrics: Optional[Dict[str, float]] = None) -> None:
        """Complete the metrics of a validation."""
        self._complete(runner, metrics, runner.val_loop)

    def after_test_epoch(self, runner: Runner, metrics: Optional[Dict[str, float]] = None) -> None:
        """Complete the metrics of a test."""
        self._complete(runner, metrics, runner.test_loop)

    def _complete(self, runner: Runner, metrics: Optional[Dict[str, float]], loop) -> None:
        if metrics is None:
            return
        added = fill_empty_scores(metrics, loop.evaluator)
        if added:
            print_log(f'not a single detection: {", ".join(added)} set to 0', logger='current', level=logging.WARNING)
        shared = [self._measure_or_warn(runner, loop) if is_main_process() else None]
        broadcast_object_list(shared)
        metrics.update(shared[0])

    def _measure_or_warn(self, runner: Runner, loop) -> Dict[str, float]:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        device = next(model.parameters()).device
        cost = attempt(lambda: self._measure(model, loop, str(device)), device)
        if isinstance(cost, Failure):
            print_log(f'the cost of the model could not be measured, {cost.kind}: {cost.message}', logger='current',
                      level=logging.WARNING)
            return {}
        if not self._environment:
            self._environment = environment(device)
            print_log(f'cost is measured with: {describe(self._environment)}', logger='current')
        write_json(Path(runner.log_dir) / FILE_NAME, dict(environment=self._environment, cost=cost))
        return cost

    def _measure(self, model: nn.Module, loop, device: str) -> Dict[str, float]:
        with undisturbed(model):
            data, size = self._batch(loop.dataloader.dataset)
            dtype = torch.get_autocast_dtype(torch.device(device).type) if loop.fp16 else None
            workload = Workload(self.batch, size, device, dtype)
            call = inference_call(model, workload, data)
            timing = time_interleaved({'model': call}, device, **self.timing)['model']
            if isinstance(timing, Failure):
                raise RuntimeError(str(timing))
            cells: Dict[str, Any] = dict(latency_ms=timing.median, latency_p90_ms=timing.p90,
                                         throughput_img_s=timing.throughput(self.batch))
            # A deployed model's kernels are inside compiled functions: count on the one it was made from.
            counted, = getattr(model, 'deployed_from', (model, ))
            cells.update(self._size_cells(counted, size), **_memory_cells(call, model, device))
        cells.update(height=size[0], width=size[1], batch=self.batch)
        # All float: mmengine's JSON of a test drops integers.
        return {PREFIX + key: float(value) for key, value in cells.items()}

    def _batch(self, dataset) -> Tuple[Optional[dict], Tuple[int, int]]:
        if self.size is not None:
            return None, self.size
        sample = dataset[0]
        data = dict(inputs=[sample['inputs']] * self.batch, data_samples=[sample['data_samples']] * self.batch)
        return data, tuple(sample['inputs'].shape[-2:])

    def _size_cells(self, model: nn.Module, size: Tuple[int, int]) -> Dict[str, float]:
        """GMACs and parameters; counted once, then remembered. What can't be counted is left out, and said once."""
        if size not in self._complexity:
            self._complexity[size] = attempt(lambda: complexity_row(model, size))
            if isinstance(self._complexity[size], Failure):
                print_log(f'GMACs can not be counted, {self._complexity[size]}', logger='current',
                          level=logging.WARNING)
        known = self._complexity[size]
        return {} if isinstance(known, Failure) else known


def _memory_cells(call: Call, model: nn.Module, device: str) -> Dict[str, float]:
    peak = attempt(lambda: peak_memory_mb(call, weight_bytes(model), device), device)
    return {} if peak is None or isinstance(peak, Failure) else dict(peak_memory_mb=peak)

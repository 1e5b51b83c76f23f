"""Cost of several models side by side: one process, the same workloads, calls that take turns.

A result is a list of flat rows, one per model and workload, with the keys of :data:`COST_COLUMNS` and what is needed to
read a row alone (``batch``, ``height``, ``width``, ``proposals``, ``device``, ``precision``, ``channels_last``). A number
that could not be had is None, and ``error`` (``train_error`` for the training step) says why. ``disturbed``
(``train_disturbed``) says what showed that the machine was busy with something else, and is None where nothing did.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from ..anatomy import is_exported
from .complexity import complexity_row, deployed_row
from .latency import Failure, Timing, attempt, time_interleaved
from .memory import momentum_bytes, peak_memory_mb, weight_bytes
from .tables import Column
from .workload import Workload, inference_call, train_call

Row = dict[str, Any]
Prepare = Callable[[nn.Module, Workload], nn.Module]

# M: millions of parameters. The cell of a failure carries its name where the reader looks first.
COST_COLUMNS = (
    Column('latency_ms', 'latency ms', 2, error='error', doubt='disturbed'),
    Column('latency_p90_ms', 'p90 ms', 2, doubt='disturbed'),
    Column('throughput_img_s', 'img/s', 1, doubt='disturbed'),
    Column('latency_ratio', 'x first', 3, doubt='disturbed'),
    Column('gmacs', 'GMACs', 3, error='error'),
    Column('unique_params_m', 'unique M', 3),
    Column('deployed_params_m', 'deployed M', 3),
    Column('peak_memory_mb', 'peak MB', 1, error='error'),
)
FILE_COLUMN = Column('file_mb', 'file MB', 1)
TRAIN_COLUMNS = (
    Column('train_step_ms', 'train step ms', 1, error='train_error', doubt='train_disturbed'),
    Column('train_step_ratio', 'train x first', 3, doubt='train_disturbed'),
    Column('train_peak_memory_mb', 'train peak MB', 1),
)


@dataclass(frozen=True)
class Subject:
    """A model to be measured: its name in the table and what builds it."""

    name: str
    build: Callable[[], nn.Module]


def build_from_config(cfg: Config, scope: str = 'model') -> nn.Module:
    """The whole model of a config, or its backbone, with random weights (no checkpoint is read) and a fixed seed.

    Args:
        cfg (Config): an mmdet or mmseg config.
        scope (str): 'model' or 'backbone'.
    """
    part = cfg.model.backbone if scope == 'backbone' else cfg.model
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')):
        return MODELS.build(part)


def unchanged(model: nn.Module, workload: Workload) -> nn.Module:
    """The model as it was built: eager."""
    return model


class Benchmark:
    """Measures subjects on workloads.

    Args:
        subjects: the first is what ratios refer to.
        workloads: one block of rows each.
        prepare: gives the model that is timed, from the built model and a workload; complexity is counted on the built
            one, ``deployed_params_m`` on the one that is timed. Deployment goes here.
        repeats, warmup (int): see :func:`time_interleaved`.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        workloads: Sequence[Workload],
        prepare: Prepare = unchanged,
        repeats: int = 20,
        warmup: int = 5,
    ) -> None:
        names = [subject.name for subject in subjects]
        if len(set(names)) < len(names):
            raise ValueError(f'names must differ to be told apart in the table, got {names}')
        self.workloads, self.prepare = workloads, prepare
        self.timing = dict(repeats=repeats, warmup=warmup)
        self.models = {subject.name: attempt(subject.build) for subject in subjects}
        self._sizes: dict[tuple, dict[str, float] | Failure] = {}

    def run(self, train_step: bool = False, progress: Callable[[list[Row]], None] = lambda rows: None) -> list[Row]:
        """Measure everything.

        Args:
            train_step (bool): also time training steps, after all inference: they change the weights.
            progress: called with all rows so far after each workload.
        """
        rows: list[Row] = []
        for workload in self.workloads:
            rows += self._inference_block(workload)
            progress(rows)
        for index, workload in enumerate(self.workloads if train_step else ()):
            block = rows[index * len(self.models) : (index + 1) * len(self.models)]
            self._train_block(workload, {row['name']: row for row in block})
            progress(rows)
        return rows

    def _inference_block(self, workload: Workload) -> list[Row]:
        ready = {
            name: model if isinstance(model, Failure) else attempt(partial(self._ready, model, workload), workload.device)
            for name, model in self.models.items()
        }
        calls = {
            name: attempt(partial(inference_call, model, workload), workload.device)
            for name, model in ready.items()
            if not isinstance(model, Failure)
        }
        timings = _time(calls, workload, self.timing)
        rows = []
        for name in self.models:
            row = _blank_row(name, workload, self.models[name])
            _merge(row, self._complexity(name, workload))
            model = ready[name]
            if isinstance(model, Failure):
                _merge(row, model)
            else:
                _merge(row, deployed_row(model))
                _merge(row, _timing_cells(timings[name], workload))
                _merge(row, _memory_cells(model, calls[name], workload))
            rows.append(row)
        _add_ratio(rows, 'latency_ms', 'latency_ratio')
        return rows

    def _ready(self, model: nn.Module, workload: Workload) -> nn.Module:
        model = workload.place(model)
        model.eval()  # not chained: mmdet's backbones return None
        return self.prepare(model, workload)

    def _complexity(self, name: str, workload: Workload) -> dict[str, float] | Failure:
        model, key = self.models[name], (name, workload.size, workload.proposals)
        if key not in self._sizes:
            self._sizes[key] = (
                model
                if isinstance(model, Failure)
                else attempt(lambda: complexity_row(model, workload.size, workload.proposals), workload.device)
            )
        return self._sizes[key]

    def _train_block(self, workload: Workload, rows: Mapping[str, Row]) -> None:
        models = {name: model for name, model in self.models.items() if not isinstance(model, Failure)}
        calls = {name: attempt(partial(_train_call, model, workload), workload.device) for name, model in models.items()}
        timings = _time(calls, workload, self.timing)
        for name, row in rows.items():
            row.update(dict.fromkeys((*(column.key for column in TRAIN_COLUMNS), 'train_error', 'train_disturbed')))
            model = self.models[name]
            timing = model if isinstance(model, Failure) else timings[name]
            if isinstance(timing, Failure):
                _merge(row, timing, 'train_error')
            else:
                row.update(train_step_ms=timing.median, train_disturbed=timing.disturbed or None)
                resident = weight_bytes(models[name]) + momentum_bytes(models[name])
                _merge(row, _peak('train_peak_memory_mb', calls[name], resident, workload), 'train_error')
        _add_ratio(list(rows.values()), 'train_step_ms', 'train_step_ratio')


def _train_call(model: nn.Module, workload: Workload):
    if is_exported(model):
        raise ValueError('an exported file can not be trained')
    model = workload.place(model)
    model.train()
    return train_call(model, workload)


def _time(calls: Mapping[str, Any], workload: Workload, timing: dict) -> dict[str, Timing | Failure]:
    """Timings of the calls that could be made; failures stay what they are."""
    callables = {name: call for name, call in calls.items() if not isinstance(call, Failure)}
    return {**calls, **time_interleaved(callables, workload.device, **timing)}


def _blank_row(name: str, workload: Workload, model: nn.Module | Failure) -> Row:
    row: Row = dict(
        name=name,
        batch=workload.batch,
        height=workload.size[0],
        width=workload.size[1],
        proposals=None if isinstance(model, Failure) else workload.proposals_of(model),
        device=workload.device,
        precision=workload.precision,
        channels_last=workload.channels_last,
    )
    return {**row, **dict.fromkeys(column.key for column in (*COST_COLUMNS, FILE_COLUMN)), 'error': None, 'disturbed': None}


def _merge(row: Row, result: Mapping[str, Any] | Failure, error_key: str = 'error') -> None:
    """Take over cells, or name the first failure."""
    if not isinstance(result, Failure):
        row.update(result)
    elif row.get(error_key) is None:
        row[error_key] = str(result)


def _timing_cells(timing: Timing | Failure, workload: Workload) -> Row | Failure:
    if isinstance(timing, Failure):
        return timing
    return dict(
        latency_ms=timing.median,
        latency_p90_ms=timing.p90,
        throughput_img_s=timing.throughput(workload.batch),
        disturbed=timing.disturbed or None,
    )


def _memory_cells(model: nn.Module, call: Any, workload: Workload) -> Row | Failure:
    if is_exported(model):  # the memory of its runtime is not seen from here
        return dict(file_mb=cast(Any, model).file_mb, precision=cast(Any, model).precision)
    return _peak('peak_memory_mb', call, weight_bytes(model), workload)


def _peak(key: str, call: Any, resident: int, workload: Workload) -> Row | Failure:
    if isinstance(call, Failure):
        return call
    peak = attempt(lambda: peak_memory_mb(call, resident, workload.device), workload.device)
    return peak if isinstance(peak, Failure) else {key: peak}


def _add_ratio(rows: list[Row], key: str, ratio_key: str) -> None:
    """Each value over the first row's; above 1 is slower."""
    first: float | None = rows[0][key] if rows else None
    for row in rows:
        row[ratio_key] = row[key] / first if first and row[key] is not None else None

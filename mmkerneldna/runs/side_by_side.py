"""Cost of trained variants, measured in one process in turns, and its way into tables of runs."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from mmengine.config import Config
from torch import nn

from .. import launch
from ..checkpoints.loading import read_checkpoint
from ..measure.benchmark import COST_COLUMNS, Benchmark, Subject, build_from_config
from ..measure.environment import environment
from ..measure.tables import write_json
from ..measure.workload import Workload
from .comparison import Run
from .results import Row

FILE_NAME = 'cost.json'
KEYS = (*(column.key for column in COST_COLUMNS), 'batch', 'height', 'width', 'device', 'error', 'disturbed')


def measure(
    configs: Mapping[str, Config], runs: Sequence[Run], workload: Workload, repeats: int, work_dir: Path
) -> dict[str, Row]:
    """Cost of each variant with the weights of its first seed; of one that was never trained, why there is none.

    Args:
        configs: by the variants' names; ratios refer to the first.
        runs: of all variants and seeds; only finished ones count.
        workload: what is timed.
        repeats: timed rounds.
        work_dir: of the comparison; it gets ``cost.json``, which :func:`interleaved_cost` finds.

    Returns:
        dict: rows of the benchmark by name.
    """
    first: dict[str, Run] = {}
    for run in runs:
        if run.finished:
            first.setdefault(run.variant.name, run)
    subjects = [Subject(name, partial(trained_model, configs[name], first.get(name))) for name in configs]
    rows = Benchmark(subjects, [workload], repeats=repeats).run()
    write_json(work_dir / FILE_NAME, dict(environment=environment(workload.device), rows=rows))
    return {row['name']: row for row in rows}


def trained_model(cfg: Config, run: Run | None) -> nn.Module:
    """The model of a finished run with its weights.

    Raises:
        RuntimeError: there is no such run.
    """
    if run is None:
        raise RuntimeError('no run of this variant was finished')
    launch.unsync_batch_norm(cfg)
    model = build_from_config(cfg)
    model.load_state_dict(read_checkpoint(run.checkpoint())['state_dict'])
    return model


def interleaved_cost(run_dir: Path) -> Row | None:
    """What :func:`measure` found for the variant of a run ``<comparison>/<variant>/seed_<n>``; None for any other run."""
    run_dir = Path(run_dir).resolve()
    path = run_dir.parent.parent / FILE_NAME
    if not (run_dir / 'recipe.json').is_file() or not path.is_file():
        return None
    rows = json.loads(path.read_text()).get('rows', [])
    return next((row for row in rows if row['name'] == run_dir.parent.name and row['latency_ms'] is not None), None)


def with_cost(rows: Sequence[Row], costs: Mapping[str, Row]) -> list[Row]:
    """Rows with the interleaved cost in place of what each run measured by itself."""
    return [replace_cost(row, costs.get(row['name'], {})) for row in rows]


def replace_cost(row: Row, cost: Row) -> Row:
    """One row with another cost; what the other does not know is None."""
    kept = {key: value for key, value in row.items() if key not in KEYS and key.removesuffix('_std') not in KEYS}
    return {**kept, **{key: cost.get(key) for key in KEYS}}

"""What runs left behind: one flat row per work_dir (see :mod:`.work_dir`), with its scores, its cost and how far it got."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..hooks.cost_hook import PREFIX
from .scores import SCORES, Score, is_number
from .work_dir import (
    checkpoint_step,
    config_name,
    is_validation,
    read_config,
    read_environment,
    read_logs,
    read_test,
    stamps_of,
)

Row = dict[str, Any]
TASKS = {'mmdet': 'detection', 'mmseg': 'segmentation'}


def collect_run(work_dir: Path, name: str | None = None) -> Row:
    """The row of one run.

    ``score`` is the test's, or the last validation's where no test was run (not the best validation's: chosen on the
    data it is measured on, it flatters); ``score_from`` says which. ``<metric>_best``, ``_last`` and ``_test`` have all
    three. Cost comes from the same evaluation as the score. What is missing is None, ``note`` says why.

    Args:
        work_dir (Path): of one run.
        name (str, optional): for the table; the folder's own by default.
    """
    work_dir = Path(work_dir)
    stamps = stamps_of(work_dir)
    logs = read_logs(stamps)
    validations, test = [r for r in logs.records if is_validation(r)], read_test(stamps)
    cfg = read_config(work_dir, logs.trained or stamps)
    row: Row = dict(name=name or work_dir.name, work_dir=str(work_dir), config=config_name(work_dir))
    row.update(_config_cells(cfg))
    row.update(_score_cells(validations, test))
    row['task'] = row['task'] or _task_by_score(row)
    row.update(_cost_cells(test or (validations[-1] if validations else {})), **_environment_cells(read_environment(stamps)))
    row.update(_progress_cells(cfg, logs.records, validations, checkpoint_step(work_dir)))
    row['note'] = _note(row, validations, test, logs.broken)
    return row


def _config_cells(cfg: Config) -> Row:
    model = cfg.get('model', {})
    return dict(
        task=TASKS.get(cfg.get('default_scope')),
        model=model.get('type'),
        backbone=backbone_label(model.get('backbone')),
        seed=(cfg.get('randomness') or {}).get('seed'),
    )


def backbone_label(cfg: dict | None) -> str | None:
    """``ResNet-18``, with the convolution where it is not the plain one: ``ResNet-18 ODConv2d``.

    Examples:
        >>> backbone_label(dict(type='DynamicConvs', module=dict(type='ResNet', depth=18), conv=dict(type='SEConv2d')))
        'ResNet-18 SEConv2d'
    """
    if not cfg:
        return None
    if 'module' in cfg:  # KernelDNA and DynamicConvs around another net
        kind = (cfg.get('conv') or {}).get('type', cfg['type'])
        return f'{backbone_label(cfg["module"])} {kind}'
    conv = (cfg.get('conv_cfg') or {}).get('type')
    return str(cfg['type']) + (f'-{cfg["depth"]}' if 'depth' in cfg else '') + (f' {conv}' if conv else '')


def _task_by_score(row: Row) -> str | None:
    metric = row.get('metric')
    return None if metric is None else 'segmentation' if metric in ('miou', 'macc', 'aacc') else 'detection'


def _score_cells(validations: Sequence[dict], test: dict) -> Row:
    row: Row = dict(metric=None, score=None, score_from=None)
    for score in SCORES:
        seen = [r for r in validations if is_number(r.get(score.key))]
        if not seen and not is_number(test.get(score.key)):
            continue
        best = max(seen, key=lambda r: r[score.key], default={})
        row.update(
            {
                f'{score.name}_best': _scaled(best, score),
                f'{score.name}_best_step': best.get('step'),
                f'{score.name}_last': _scaled(seen[-1] if seen else {}, score),
                f'{score.name}_test': _scaled(test, score),
            }
        )
        row[score.name], source = _reported(row, score)
        if row['metric'] is None:
            row.update(metric=score.name, score=row[score.name], score_from=source)
    return row


def _reported(row: Row, score: Score) -> tuple[float | None, str]:
    tested = row[f'{score.name}_test']
    return (tested, 'test') if tested is not None else (row[f'{score.name}_last'], 'last val')


def _scaled(record: dict, score: Score) -> float | None:
    value = record.get(score.key)
    return value * score.scale if is_number(value) else None


def _cost_cells(metrics: dict) -> Row:
    """Of one evaluation; ``disturbed`` as a truth value, for the mark behind a latency."""
    cells = {key[len(PREFIX) :]: value for key, value in metrics.items() if key.startswith(PREFIX)}
    return {**cells, 'disturbed': bool(cells['disturbed'])} if 'disturbed' in cells else cells


def _environment_cells(facts: dict) -> Row:
    if not facts:
        return {}
    return dict(device=facts.get('gpu') or f'{facts["cpu"]}, {facts["threads"]} threads', torch=facts['torch'])


def _progress_cells(cfg: Config, records: Sequence[dict], validations: Sequence[dict], saved: int | None) -> Row:
    plan = cfg.get('train_cfg') or {}
    unit, planned = ('epoch', plan['max_epochs']) if plan.get('max_epochs') else ('iter', plan.get('max_iters'))
    trained = [r for r in records if not is_validation(r)]
    # Steps that were completed; a log line of epoch 12 may come from its first iteration.
    done = [r['step'] for r in validations if 'step' in r] + ([] if saved is None else [saved])
    times = [r['time'] for r in trained if is_number(r.get('time'))]
    return dict(
        trained=max(done, default=0) if trained else None,
        planned=planned if trained else None,
        unit=unit if trained else None,
        train_iter_s=statistics.median(times) if times else None,
    )


def _note(row: Row, validations: Sequence[dict], test: dict, broken: int) -> str | None:
    notes = []
    if row['planned'] and row['trained'] < row['planned']:
        notes.append(f'{row["unit"]} {row["trained"]} of {row["planned"]} done')
    if not validations and not test:
        notes.append('no evaluation yet')
    elif not any(key.startswith(PREFIX) for key in test or validations[-1]):
        notes.append('no cost: CostHook was not on')
    if broken:
        notes.append(f'{broken} log line(s) unreadable')
    return '; '.join(notes) or None


def sort_rows(rows: Iterable[Row]) -> list[Row]:
    """Best score first, rows without one last."""
    return sorted(rows, key=lambda row: (row.get('score') is None, -(row.get('score') or 0), row['name']))


def group_rows(rows: Sequence[Row], group_of: Callable[[Row], str]) -> list[Row]:
    """One row per group of runs (seeds): means, and the sample standard deviation as ``<key>_std``.

    A mean is over the runs that have the number. ``runs`` counts all of them, ``scored`` those with a score. The spread
    of a single run is unknown and left out. Text that differs between those that have it is dropped.

    Args:
        rows: of :func:`collect_run`.
        group_of: name of the group a row belongs to.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(group_of(row), []).append(row)
    return [_joined(name, members) for name, members in groups.items()]


def _joined(name: str, members: Sequence[Row]) -> Row:
    joined: Row = {}
    for key in dict.fromkeys(key for row in members for key in row):
        values = [row.get(key) for row in members]
        numbers = [value for value in values if is_number(value)]
        if numbers and key not in ('seed', 'height', 'width', 'batch', 'trained', 'planned'):
            joined[key] = statistics.fmean(numbers)
            if len(numbers) > 1:
                joined[f'{key}_std'] = statistics.stdev(numbers)
        else:
            known = [value for value in values if value is not None]
            joined[key] = known[0] if known and all(value == known[0] for value in known) else None
    if 'disturbed' in joined:  # a mean is as doubtful as any of its parts
        joined['disturbed'] = any(row.get('disturbed') for row in members)
    notes = [f'{row["name"]}: {row["note"]}' for row in members if row.get('note')]
    joined.update(
        name=name, runs=len(members), scored=sum(row.get('score') is not None for row in members), note='; '.join(notes) or None
    )
    return joined

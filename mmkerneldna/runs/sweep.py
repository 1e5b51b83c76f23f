"""Score over measured latency of one model at several keep rates, next to static nets: table and plot."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..measure.tables import Column, markdown, write_json, write_text

Row = dict[str, Any]
COLUMNS = (
    Column('name', 'model'),
    Column('keep', 'keep', 2),
    Column('keep_rate', 'computed', 3),
    Column('score', 'score', 2),
    Column('latency_ms', 'median ms', 2, error='error', doubt='disturbed'),
    Column('latency_mean_ms', 'mean ms', 2, doubt='disturbed'),
    Column('latency_p90_ms', 'p90 ms', 2, doubt='disturbed'),
    Column('gmacs', 'GMACs run', 3),
)


def sweep_figure(rows: Sequence[Row], metric: str) -> Figure:
    """Score over the mean latency: a line through the operating points of one model, another through the static nets."""
    figure = Figure(figsize=(7, 4.6), layout='constrained')
    FigureCanvasAgg(figure)  # no pyplot: nothing global, no display needed
    axis = figure.subplots()
    shown = [row for row in rows if row.get('score') is not None and row.get('latency_mean_ms') is not None]
    for swept, label, style in ((True, 'one model, keep rate set afterwards', 'o-'), (False, 'static nets', 's--')):
        order = 'keep' if swept else 'latency_mean_ms'
        line = sorted((row for row in shown if (row.get('keep') is not None) == swept), key=lambda row: row[order])
        if not line:
            continue
        axis.plot([row['latency_mean_ms'] for row in line], [row['score'] for row in line], style, label=label)
        for row in line:
            text = f'{row["keep"]:g}' if swept else row['name']
            axis.annotate(text, (row['latency_mean_ms'], row['score']), xytext=(5, 5), textcoords='offset points', fontsize=9)
    note = '; the machine was busy' if any(row.get('disturbed') for row in shown) else ''
    axis.set(xlabel=f'latency (ms), mean over images{note}', ylabel=metric)
    axis.margins(0.12)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure


def write_sweep(
    folder: Path, rows: Sequence[Row], metric: str, facts: dict[str, Any], title: str, lines: Sequence[str]
) -> list[Path]:
    """Write sweep.json, sweep.md and sweep.png.

    Args:
        folder (Path): exists.
        rows: flat, with the keys of :data:`COLUMNS`.
        metric (str): what the score is.
        facts (dict): of the machine.
        title (str): of the table.
        lines: what else to say below it.

    Returns:
        list[Path]: the files.
    """
    paths = [folder / f'sweep.{kind}' for kind in ('json', 'md', 'png')]
    write_json(paths[0], dict(environment=facts, metric=metric, rows=list(rows)))
    write_text(paths[1], '\n'.join([f'# {title}', '', markdown(rows, COLUMNS), '', *lines]) + '\n')
    sweep_figure(rows, metric).savefig(paths[2], dpi=130)
    return paths

"""Accuracy over cost: the front of the runs that no other run beats in both, and its plot."""

from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .results import Row
from .scores import SCORES

# key of a row, axis label
COSTS = (('latency_ms', 'latency (ms)'), ('unique_params_m', 'unique params (M)'))


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, score) that none other beats, by rising cost.

    A point is beaten by one that costs no more and scores no less, and differs in at least one of the two.

    Examples:
        >>> pareto_front([(2.0, 50.0), (1.0, 40.0), (3.0, 45.0)])
        [1, 0]
    """
    front: list[int] = []
    best = float('-inf')
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        cost, score = points[index]
        if score > best or (front and points[front[-1]] == (cost, score)):
            front.append(index)
            best = max(best, score)
    return front


def pareto_figure(tables: Sequence[tuple[str, Sequence[Row]]]) -> Figure | None:
    """One line of panels per task, one panel per cost; None if no run has both a score and a cost.

    The numbers at the points are those of the table's lines; bars are standard deviations over seeds. A hollow point is a
    latency that the machine disturbed.

    Args:
        tables: (task, sorted rows).
    """
    tables = [(task, rows) for task, rows in tables if any(plottable(row, 'latency_ms') for row in rows)]
    if not tables:
        return None
    figure = Figure(figsize=(6.2 * len(COSTS) + 2.6, 4.6 * len(tables)), layout='constrained')
    FigureCanvasAgg(figure)  # no pyplot: nothing global, no display needed
    axes = figure.subplots(len(tables), len(COSTS), squeeze=False)
    for (task, rows), line in zip(tables, axes):
        for axis, (key, label) in zip(line, COSTS):
            _draw_panel(axis, rows, key)
            doubtful = key == 'latency_ms' and any(row.get('disturbed') for row in rows)
            note = '; hollow: the machine was busy' if doubtful else ''
            axis.set(xlabel=label + note, ylabel=_score_title(rows), title=task)
        line[-1].legend(loc='upper left', bbox_to_anchor=(1.01, 1), fontsize=8, frameon=False)
    return figure


def plottable(row: Row, cost: str) -> bool:
    """Whether a row has both coordinates."""
    return row.get('score') is not None and row.get(cost) is not None


def _draw_panel(axis, rows: Sequence[Row], cost: str) -> None:
    shown = [(number, row) for number, row in enumerate(rows, 1) if plottable(row, cost)]
    points = [(row[cost], row['score']) for _, row in shown]
    front = pareto_front(points)
    axis.plot(*zip(*(points[i] for i in front)) if front else ([], []), color='0.6', linestyle='--', zorder=1)
    for number, row in shown:
        color = f'C{(number - 1) % 10}'
        hollow = cost == 'latency_ms' and row.get('disturbed')
        axis.errorbar(
            row[cost],
            row['score'],
            xerr=row.get(f'{cost}_std'),
            yerr=row.get('score_std'),
            fmt='o',
            markersize=7,
            color=color,
            markerfacecolor='none' if hollow else color,
            label=f'{number} {row["name"]}',
            zorder=2,
        )
        axis.annotate(str(number), (row[cost], row['score']), xytext=(5, 5), textcoords='offset points', fontsize=9)
    axis.margins(0.12)
    axis.grid(alpha=0.3)


def _score_title(rows: Sequence[Row]) -> str:
    metric = next((row['metric'] for row in rows if row.get('metric')), None)
    return next((score.title for score in SCORES if score.name == metric), 'score')

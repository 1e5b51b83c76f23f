"""Redundancy as a table, as files, and as pictures: heat maps of all pairs, and a tree of the layers that belong together."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import dendrogram, leaves_list, linkage
from scipy.spatial.distance import squareform

from .redundancy import Pair, Redundancy
from .redundancy_validation import Trial, rank_correlations
from .report import number, render

APART = 1.1  # distance of two convs that can't share: more than that of any two that can
PANELS = {
    'kernel_error': 'squared error of the kernel / power',
    'output_error': "1 - R² of the child's output",
    'cka': "linear CKA of the blocks' outputs",
    'damage': 'predicted damage',
}


def pair_table(redundancy: Redundancy, most: int = 20) -> str:
    """The pairs of least predicted damage, as text."""
    rows = redundancy.rows()
    columns = ('kernel_error', 'output_error', 'cka', 'share', 'damage')
    table = render(
        'child',
        ('parent', *(name.replace('_', ' ') for name in columns)),
        [(row['child'], row['parent'], *(number(row[name]) for name in columns)) for row in rows[:most]],
    )
    return table + (f'\n... and {len(rows) - most} pairs more' if len(rows) > most else '')


def trial_table(trials: Sequence[Trial]) -> str:
    """Predicted and measured damage of single children, and the rank correlations, as text."""
    table = render(
        'child',
        ('parent', 'predicted damage', 'measured error'),
        [(t.pair.child, t.pair.parent, number(t.pair.damage), number(t.measured)) for t in trials],
    )
    found = ', '.join(f'{name} {value:.2f}' for name, value in rank_correlations(trials).items())
    return f"{table}\nSpearman's rank correlation of {len(trials)} measured damages with: {found}"


def layer_order(redundancy: Redundancy) -> tuple[list[str], np.ndarray]:
    """Which layers belong together: average linkage of the error of the better direction.

    Returns:
        tuple: paths in order of definition, and scipy's linkage of them.
    """
    paths = list(dict.fromkeys(pair.child for pair in redundancy.pairs))
    errors = {(pair.child, pair.parent): _error(pair) for pair in redundancy.pairs}
    distance = np.array(
        [[0.0 if a == b else min(errors.get((a, b), APART), errors.get((b, a), APART)) for b in paths] for a in paths]
    )
    return paths, linkage(squareform(distance, checks=False), 'average')


def _error(pair: Pair) -> float:
    return min(1.0, pair.kernel_error if pair.output_error is None else pair.output_error)


def heat_figure(redundancy: Redundancy) -> Figure:
    """A heat map for each figure that was measured: children in rows, parents in columns, neighbours in the tree together."""
    paths, tree = layer_order(redundancy)
    order = [paths[i] for i in leaves_list(tree)]
    place = {path: i for i, path in enumerate(order)}
    shown = [name for name in PANELS if any(getattr(pair, name) is not None for pair in redundancy.pairs)]
    side = max(4.0, 0.22 * len(order))
    figure = Figure(figsize=((side + 1.5) * len(shown), side + 1.5), layout='constrained')
    FigureCanvasAgg(figure)  # no pyplot: nothing global, no display needed
    for axis, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown):
        values = np.full((len(order), len(order)), np.nan)
        for pair in redundancy.pairs:
            value = getattr(pair, name)
            values[place[pair.child], place[pair.parent]] = np.nan if value is None else value
        figure.colorbar(axis.imshow(values, cmap='viridis'), ax=axis, shrink=0.7)
        axis.set(title=PANELS[name], xticks=range(len(order)), yticks=range(len(order)), xlabel='parent')
        axis.set_xticklabels(order, rotation=90, fontsize=6)
        axis.set_yticklabels(order, fontsize=6)
    return figure


def tree_figure(redundancy: Redundancy) -> Figure:
    """The layers as a dendrogram: the further left two meet, the better one does with the other's kernel."""
    paths, tree = layer_order(redundancy)
    figure = Figure(figsize=(8, max(3.0, 0.22 * len(paths) + 1)), layout='constrained')
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    dendrogram(tree, labels=paths, orientation='right', ax=axis, color_threshold=1.0, leaf_font_size=6)
    axis.set(
        xlabel='1 - R² of the output' if redundancy.with_images else 'squared error of the kernel / power',
        title='which layers belong together (1.1: of different shape)',
    )
    return figure


def write_redundancy(folder: Path, redundancy: Redundancy, trials: Sequence[Trial] = ()) -> list[Path]:
    """Write redundancy.json, redundancy.csv, heatmaps.png and dendrogram.png.

    Returns:
        list[Path]: the files.
    """
    paths, tree = layer_order(redundancy)
    rows = redundancy.rows()
    held = dict(
        pairs=rows,
        order=[paths[i] for i in leaves_list(tree)],
        trials=[dict(child=t.pair.child, parent=t.pair.parent, predicted=t.pair.damage, measured=t.measured) for t in trials],
        rank_correlations=rank_correlations(trials) if trials else {},
    )
    files = [folder / name for name in ('redundancy.json', 'redundancy.csv', 'heatmaps.png', 'dendrogram.png')]
    files[0].write_text(json.dumps(held, indent=2))
    with open(files[1], 'w', newline='') as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    heat_figure(redundancy).savefig(files[2], dpi=120)
    tree_figure(redundancy).savefig(files[3], dpi=120)
    return files

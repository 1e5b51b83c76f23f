"""What a derivation leaves on disk: a checkpoint that the tools take, its config, and the report as text, JSON and PNG."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mmengine
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mmengine.config import Config
from torch import nn

from ..errors import UsageError
from .report import DeriveReport

SUFFIXES = ('.py', '.txt', '.json', '.png')


def check_out(path: Path) -> None:
    """Refuse a file that can't be written, before anything slow.

    Raises:
        UsageError: says why.
    """
    if path.suffix not in ('.pth', '.pt'):
        raise UsageError(f'--out {path} must end in .pth: config and report go beside it under the same name')
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UsageError(f'folder {path.parent} does not exist or is not writable: make it, or name another by --out')


def write_outputs(
    path: Path, model: nn.Module, cfg: Config, report: DeriveReport, source: str, meta: Mapping[str, Any]
) -> list[Path]:
    """Write ``path`` and, beside it, the config of the model and the report.

    Args:
        path (Path): of the checkpoint.
        model (nn.Module): derived.
        cfg (Config): that builds it.
        report (DeriveReport): of the derivation.
        source (str): name of the dense checkpoint.
        meta (Mapping): of the dense checkpoint; its ``dataset_meta`` is kept.

    Returns:
        list[Path]: files written.
    """
    kept = {key: meta[key] for key in ('dataset_meta', 'CLASSES', 'PALETTE') if key in meta}
    held = dict(
        meta={**kept, 'mmengine_version': mmengine.__version__, 'derived_from': source, 'steps': report.steps},
        state_dict={key: value.cpu() for key, value in model.state_dict().items()},
    )
    partly = path.with_suffix('.tmp')
    torch.save(held, partly)
    os.replace(partly, path)
    files = [path.with_suffix(suffix) for suffix in SUFFIXES]
    cfg.dump(files[0])
    files[1].write_text(f'{report}\n')
    files[2].write_text(json.dumps(report.to_dict(), indent=2))
    figure = error_figure(report)
    figure.savefig(files[3], dpi=120)
    return [path, *files]


def error_figure(report: DeriveReport) -> Figure:
    """Bars: error of each changed block's output and of each level; without images the starts' errors."""
    figure = Figure(figsize=(9, 3.6), layout='constrained')
    FigureCanvasAgg(figure)  # no pyplot: nothing global, no display needed
    if report.levels:
        left, right = figure.subplots(1, 2)
        _bars(left, report.blocks, 'squared error / power, dense input', 'output of the changed blocks')
        _bars(right, {f'level {row.level}': row.error for row in report.levels}, '||difference|| / ||dense||', 'features')
    else:
        starts = {row.child: row.kernel_error for row in report.children}
        starts |= {row.rival: row.start_error for row in report.rivals}
        _bars(figure.subplots(), starts, '||difference|| / ||dense||', 'start: kernels of children, outputs of dynamic layers')
    return figure


def _bars(axis, values: Mapping[str, float], label: str, title: str) -> None:
    axis.barh(list(values), list(values.values()), color='tab:blue')
    axis.invert_yaxis()
    axis.set(xlabel=label, title=title)

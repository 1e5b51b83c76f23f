"""Derive: grow, fit, recalibrate, reconstruct; all or nothing."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..modules import count_parameters
from .dense import block_of
from .recalibrate import Recalibration, absorb, batch_norms
from .reconstruct import Reconstruction, reconstruct, relative_loss, units_of
from .report import FITTED, NEW, DeriveReport, level_rows
from .rivals import rivals_of
from .run import Images, Run, called, recorded, tensors
from .source import DeriveError, Source, read_source
from .start import Start, takes_dense

PARENTS = ('keep', 'mean')


def derive(
    target: nn.Module,
    source: Source,
    images: Iterable[Tensor] | None = None,
    *,
    steps: int = 0,
    parents: str = 'keep',
    align: bool = True,
    calibration_batches: int = 4,
    reconstruction: Reconstruction | None = None,
    partial: bool = False,
) -> DeriveReport:
    """Give a net with shared kernels or dynamic layers the weights of a dense one, in place.

    Extra blocks of the target become identities, so growing changes nothing. A child keeps its kernel where its parent is free
    to take it; elsewhere it starts from the parent's, at its own size and behind a neutral gate. A dynamic layer (``ODConv2d``
    and the other rivals) starts as the static convolution, with neutral attention, where one of its settings is that
    convolution. With ``images`` the norms and branches of the changed blocks are brought back to size, and ``steps`` of
    reconstruction teach them the dense net's outputs.

    Args:
        target (nn.Module): backbone, or a whole detector or segmenter, with shared kernels or dynamic layers in any part.
        source: dense weights of the same family, at most as deep: a module, a state dict, or what names a file of them.
        images (Iterable[Tensor], optional): batches of preprocessed images (N, 3, H, W), without labels; may be endless.
        steps (int): of reconstruction, one batch each.
        parents (str): ``'keep'``: parents keep their kernels; ``'mean'``: each family shares the mean of its kernels, brought
            to the same size and sign.
        align (bool): put free hidden channels into the order in which they fit best.
        calibration_batches (int): batches that norms and branches are measured on.
        reconstruction (Reconstruction, optional): settings other than the defaults; its ``steps`` are replaced.
        partial (bool): leave entries as they are that the source lacks or has in another shape.

    Returns:
        DeriveReport: per child, per dynamic layer, per level, in all.

    Raises:
        DeriveError: settings, a source or images that can't be used; the target is as it was.
        CheckpointError: the source can't be read, holds no weights, or NaN.
    """
    _check(steps, images, parents, calibration_batches)
    began, state = time.perf_counter(), read_source(source)
    with _all_or_nothing(target):
        start = Start(target, state, partial)
        _check_purpose(start)
        paths = [*start.parents, *start.parents.values(), *start.rivals]
        pictures = None if images is None else Images(images)
        batches = pictures.take(calibration_batches) if pictures else []
        run = Run(target, paths)
        start.fit(parents == 'mean', align, run, batches)
        report = DeriveReport(
            start.rows,
            start.rival_rows,
            sorted(start.identities),
            left_out=start.left_out,
            kept=start.kept,
            parameters_before=start.dense_size(),
            parameters_after=count_parameters(target),
        )
        if pictures:
            _use_images(
                start, run, pictures, batches, replace(reconstruction or Reconstruction(), steps=steps or 1), steps, report
            )
    report.seconds = time.perf_counter() - began
    print_log(report.headline(), logger='current')
    return report


def _check(steps: int, images, parents: str, calibration_batches: int) -> None:
    if parents not in PARENTS:
        raise DeriveError(f'parents={parents!r} must be one of {", ".join(map(repr, PARENTS))}')
    if steps < 0 or calibration_batches < 1:
        raise DeriveError(f'steps={steps} must be 0 or more and calibration_batches={calibration_batches} 1 or more')
    if steps and images is None:
        raise DeriveError(f'{steps} steps of reconstruction need images')


def _check_purpose(start: Start) -> None:
    if not (start.parents or rivals_of(start.target) or start.identities or takes_dense(start.target)):
        raise DeriveError(
            f'{type(start.target).__name__} has neither children nor dynamic layers, and no more blocks than the '
            'source: load the weights as they are, or name what to derive by --plan or by --variant'
        )


@torch.no_grad()
def _use_images(
    start: Start,
    run: Run,
    images: Images,
    batches: Sequence[Tensor],
    settings: Reconstruction,
    steps: int,
    report: DeriveReport,
) -> None:
    target, twin = start.target, start.twin
    target.eval()
    blocks, reached = start.changed_blocks(), called(twin, run, batches[0])
    units = {block: unit for block in blocks for unit in units_of([block], reached)[0] if unit}
    goals = [run(twin, batch) for batch in batches]
    if blocks:
        _recalibrate_if_better(Recalibration(target, twin, run, batches), units, goals)
    if steps and blocks:
        report.loss = reconstruct(target, twin, blocks, run, images, settings, reached)
        report.steps = len(report.loss)
    absorb(batch_norms(target, [*blocks, *start.identities]), lambda batch: run(target, batch), batches)
    report.levels = level_rows([run(target, batch) for batch in batches], goals)
    report.blocks = _block_errors(start, run, batches, units)
    for row in report.children:
        row.output_error = report.blocks.get(block_of(row.child), None if row.kind == FITTED else 0.0)
    for rival in report.rivals:
        rival.output_error = report.blocks.get(block_of(rival.rival), None if rival.kind == NEW else 0.0)


def _recalibrate_if_better(recalibration: Recalibration, units: Mapping[str, str], goals: Sequence[list[Tensor]]) -> None:
    """Undone if the features come no closer to the dense ones."""
    target, run = recalibration.target, recalibration.run

    def error() -> float:
        return sum(float(relative_loss(run(target, b), goal)) for b, goal in zip(recalibration.batches, goals))

    norms = batch_norms(target, units)
    before = [{key: value.clone() for key, value in norm.state_dict().items()} for norm in norms]
    uncalibrated = error()
    recalibration(units)
    if not error() < uncalibrated:
        for norm, state in zip(norms, before):
            norm.load_state_dict(state)


def _block_errors(start: Start, run: Run, batches: Sequence[Tensor], units: Mapping[str, str]) -> dict[str, float]:
    """Block -> squared error over power of its unit's output, given the dense net's input."""
    errors = dict.fromkeys(units, 0.0)
    for batch in batches:
        with recorded(start.twin, {units[block] for block in errors}) as calls:
            run(start.twin, batch)
        for block in errors:
            module = start.target.get_submodule(units[block])
            terms = [relative_loss(tensors(module(*args)), tensors(goal)) for args, goal in calls[units[block]]]
            errors[block] += float(torch.stack(terms).mean()) / len(batches)
    return errors


@contextmanager
def _all_or_nothing(target: nn.Module) -> Iterator[None]:
    """Put back every tensor and the modes after an error; the modes in any case."""
    modes = [(module, module.training) for module in target.modules()]
    tensors_before = [(t, t.detach().clone()) for t in {id(t): t for t in [*target.parameters(), *target.buffers()]}.values()]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for tensor, value in tensors_before:
                tensor.copy_(value)
        raise
    finally:
        for module, mode in modes:
            module.training = mode

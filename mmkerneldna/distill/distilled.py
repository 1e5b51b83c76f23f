"""A detector or segmenter that learns from a teacher beside its labels, and is a plain one otherwise."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import Tensor, nn

from .._registry import build_inner
from ..anatomy import is_whole
from .maps import logits_head, maps_of, recorded
from .teacher import Teacher
from .terms import DistillError, Term, parse_terms


class DistilledLoss:
    """The ``loss`` of a student: its own losses and those against the maps of its teacher.

    It hangs in the student as an attribute and holds the teacher: no submodule, so neither state dicts, optimizers, wrappers
    for distributed training nor ``train()`` find it. In a copy of the student it is the copy's.
    """

    def __init__(self, student: nn.Module, teacher: Teacher, terms: list[Term]) -> None:
        self.student, self.teacher, self.terms = student, teacher, terms

    def __deepcopy__(self, memo: dict) -> 'DistilledLoss':
        return DistilledLoss(memo.get(id(self.student), self.student), self.teacher, self.terms)

    def __call__(self, inputs: Tensor, *args, **kwargs) -> dict[str, Tensor]:
        """The student's loss dict, with one entry more per term.

        Raises:
            DistillError: maps that don't fit the teacher's.
        """
        kinds = {term.on for term in self.terms}
        theirs = self.teacher.maps(inputs, kinds)
        with recorded(self.student, kinds) as results:
            student: Any = type(self.student)
            losses = student.loss(self.student, inputs, *args, **kwargs)
        ours = maps_of(results, 'student')
        return {**losses, **{term.key: term(ours[term.on], theirs[term.on]) for term in self.terms}}

    def prepare(self) -> None:
        """Load the teacher and compare it with the student, before a training starts.

        Raises:
            UsageError, CheckpointError, DistillError: as :attr:`.Teacher.model`; or images are normalised in different ways,
                or logits are of different classes.
        """
        teacher = self.teacher.model
        ours, theirs = _normalisation(self.student), _normalisation(teacher)
        if ours != theirs:
            raise DistillError(
                f'the teacher sees the images the student sees, and both must normalise them alike: student '
                f'{_told(ours)}; teacher {_told(theirs)}'
            )
        if any(term.on == 'logits' for term in self.terms):
            counts = [logits_head(model).out_channels for model in (self.student, teacher)]
            if counts[0] != counts[1]:
                raise DistillError(
                    f'the student predicts {counts[0]} classes and the teacher {counts[1]}: CWD on logits needs '
                    "the same; give it on='levels', or take a teacher of the same classes"
                )
        print_log(f'distillation: {"; ".join(map(str, self.terms))}', logger='current')


@MODELS.register_module(name='Distilled')
def build_distilled(teacher: Mapping[str, Any], student: dict, losses: Sequence[dict] | None = None, **injected) -> nn.Module:
    """Build a student that learns from a teacher, from a config.

    ``model=dict(type='Distilled', teacher=dict(cfg=..., checkpoint=...), student=dict(type='FasterRCNN', ...),
    losses=[dict(type='PKD', weight=6)])`` returns the student itself: its checkpoints, its validation and its cost are
    those of a plain model. The teacher is loaded when a training starts, so a test needs none.

    Args:
        teacher (dict): ``cfg`` and ``checkpoint``, see :class:`.Teacher`.
        student (dict): config of a detector or segmenter.
        losses (list[dict]): see :func:`.parse_terms`.

    Returns:
        nn.Module: the student.

    Raises:
        DistillError: a config that can't be used.
    """
    unknown = set(teacher) - {'cfg', 'checkpoint'} if isinstance(teacher, Mapping) else {'type'}
    if unknown:
        raise DistillError(f'teacher={teacher!r} must be dict(cfg=..., checkpoint=...)')
    terms, source = parse_terms(losses or []), Teacher(**teacher)
    model: Any = build_inner(student, injected)
    if not is_whole(model) or not callable(getattr(model, 'loss', None)):
        raise DistillError(f'the student must be a detector or a segmenter, {type(model).__name__} is not')
    model.loss = DistilledLoss(model, source, terms)
    return model


def prepare_distillation(model: nn.Module) -> None:
    """:meth:`DistilledLoss.prepare` of a model that is distilled; nothing for any other."""
    loss = vars(model).get('loss')
    if isinstance(loss, DistilledLoss):
        loss.prepare()


def _normalisation(model: nn.Module) -> tuple[list[float] | None, list[float] | None, bool]:
    """Means, standard deviations, and whether channels are reversed."""
    part = model.data_preprocessor
    reverses = bool(getattr(part, '_channel_conversion', False))
    if not getattr(part, '_enable_normalize', False):
        return None, None, reverses
    mean, std = (torch.as_tensor(getattr(part, name)).flatten().tolist() for name in ('mean', 'std'))
    return mean, std, reverses


def _told(normalisation: tuple[list[float] | None, list[float] | None, bool]) -> str:
    mean, std, reverses = normalisation
    values = 'not at all' if mean is None or std is None else f'mean {_numbers(mean)} std {_numbers(std)}'
    return f'{values}, channels {"reversed" if reverses else "as read"}'


def _numbers(values: list[float]) -> str:
    return ', '.join(f'{value:g}' for value in values)

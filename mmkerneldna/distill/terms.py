"""The terms of a distillation, as a config states them: which loss, on which maps, with which weight."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor
from torch.nn import functional as F

from ..errors import KernelDNAError
from .losses import cwd_loss, mse_loss, pkd_loss

MAPS = ('levels', 'logits')
#: type -> loss, the maps it is meant for, its weight there (PKD: two-stage detectors; CWD: as in the papers), its options
LOSSES: dict[str, dict[str, Any]] = {
    'PKD': dict(loss=pkd_loss, on='levels', weight=6.0, options=()),
    'CWD': dict(loss=cwd_loss, on='logits', weight=3.0, options=('tau',)),
    'MSE': dict(loss=mse_loss, on='levels', weight=1.0, options=()),
}


class DistillError(KernelDNAError, ValueError):
    """A teacher, a student and losses that don't go together."""


@dataclass(frozen=True)
class Term:
    """One loss of a distillation.

    Attributes:
        kind: a key of :data:`LOSSES`.
        on: ``'levels'``, what ``extract_feat`` returns (neck, or backbone without one); ``'logits'`` of a segmenter's head.
        weight: of the loss, which is summed over levels.
        options: of the loss function.
    """

    kind: str
    on: str
    weight: float
    options: dict[str, float] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Under which the loss is logged."""
        return f'loss_{self.kind.lower()}_{self.on}'

    def __str__(self) -> str:
        return f'{self.kind} on {self.on}, weight {self.weight:g}'

    def __call__(self, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
        """The weighted loss of a student's maps.

        Raises:
            DistillError: maps of other number, channels or size than the teacher's.
        """
        loss: Callable[..., Tensor] = LOSSES[self.kind]['loss']
        total = cast(Tensor, sum(loss(*pair, **self.options) for pair in self._pairs(ours, theirs)))
        return self.weight * total

    def _pairs(self, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> list[tuple]:
        if len(ours) != len(theirs):
            raise DistillError(f'{self}: the student has {len(ours)} levels, the teacher {len(theirs)}; they must be as many')
        return [self._pair(i, a, b) for i, (a, b) in enumerate(zip(ours, theirs))]

    def _pair(self, i: int, student: Tensor, teacher: Tensor) -> tuple:
        where = 'logits' if self.on == 'logits' else f'level {i}'
        if student.shape[1] != teacher.shape[1]:
            raise DistillError(
                f'{self}: {where} has {student.shape[1]} channels in the student and {teacher.shape[1]} in the '
                'teacher; give both the same number of classes'
                if self.on == 'logits'
                else f'{self}: {where} has {student.shape[1]} channels in the student and {teacher.shape[1]} in the '
                'teacher; give both necks the same out_channels, or distil a segmenter by CWD on logits'
            )
        if student.shape[-2:] == teacher.shape[-2:]:
            return student, teacher
        if self.on == 'levels':
            raise DistillError(
                f'{self}: {where} is {_size(student)} in the student and {_size(teacher)} in the teacher; both '
                'nets must have the same strides'
            )
        return F.interpolate(student, size=teacher.shape[-2:], mode='bilinear', align_corners=False), teacher


def _size(x: Tensor) -> str:
    return 'x'.join(map(str, x.shape[-2:]))


def parse_terms(losses: Sequence[Mapping[str, Any]]) -> list[Term]:
    """Terms from configs like ``dict(type='CWD', weight=3, tau=4)``; ``on`` may name other maps than the loss is meant for.

    Raises:
        DistillError: none, an unknown type or option, a number out of range, or two of a kind on the same maps.
    """
    if not isinstance(losses, (list, tuple)) or not losses:
        raise DistillError(f"losses={losses!r} must be a list such as [dict(type='PKD')]; types: {', '.join(LOSSES)}")
    terms = [_term(loss) for loss in losses]
    keys = [term.key for term in terms]
    twice = [key for key in dict.fromkeys(keys) if keys.count(key) > 1]
    if twice:
        raise DistillError(f'{twice[0]} is there twice: name each loss once per kind of maps')
    return terms


def _term(loss: Mapping[str, Any]) -> Term:
    given = dict(loss) if isinstance(loss, Mapping) else {}
    kind = given.pop('type', None)
    if kind not in LOSSES:
        raise DistillError(f'{loss!r} is no loss of a distillation: type must be one of {", ".join(LOSSES)}')
    known = LOSSES[kind]
    on, weight = given.pop('on', known['on']), given.pop('weight', known['weight'])
    if on not in MAPS:
        raise DistillError(f'{kind}: on={on!r} must be one of {", ".join(map(repr, MAPS))}')
    unknown = set(given) - set(known['options'])
    if unknown:
        takes = ', '.join(('type', 'on', 'weight', *known['options']))
        raise DistillError(f'{kind} takes {takes}, not {", ".join(sorted(unknown))}')
    for name, value in {'weight': weight, **given}.items():
        _check_number(kind, name, value)
    return Term(kind, on, float(weight), {name: float(value) for name, value in given.items()})


def _check_number(kind: str, name: str, value: Any) -> None:
    least = 'positive' if name == 'tau' else 'non-negative'
    right = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float('inf')
    if not right or (least == 'positive' and value == 0):
        raise DistillError(f'{kind}: {name}={value!r} must be a {least} number')

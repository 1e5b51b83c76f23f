"""The metrics that are reported, and how they are written."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeGuard


@dataclass(frozen=True)
class Score:
    """A metric: its key in the logs, its name in rows, its title, and the factor that makes it percent."""

    key: str
    name: str
    title: str
    scale: float


# The first that a run has is the one it is sorted and plotted by.
SCORES = (
    Score('coco/bbox_mAP', 'box_ap', 'box AP', 100),
    Score('coco/segm_mAP', 'mask_ap', 'mask AP', 100),
    Score('coco/bbox_mAP_50', 'box_ap50', 'box AP50', 100),
    Score('pascal_voc/mAP', 'voc_ap', 'VOC AP', 100),
    Score('mIoU', 'miou', 'mIoU', 1),
    Score('mAcc', 'macc', 'mAcc', 1),
    Score('aAcc', 'aacc', 'aAcc', 1),
)


def is_number(value: Any) -> TypeGuard[float]:
    """A finite real number, of Python or numpy."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def describe_scores(metrics: Mapping[str, Any]) -> str:
    """The scores among the metrics of an evaluation, in words.

    Examples:
        >>> describe_scores({'coco/bbox_mAP': 0.264, 'coco/bbox_mAP_50': 0.5, 'cost/gmacs': 1.3})
        'box AP 26.4, box AP50 50.0'
    """
    return ', '.join(
        f'{score.title} {metrics[score.key] * score.scale:.1f}' for score in SCORES if is_number(metrics.get(score.key))
    )

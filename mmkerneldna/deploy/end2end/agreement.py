"""How far two sets of predictions agree: boxes matched by class and IoU, masks and label maps pixel by pixel."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from mmdet.structures.bbox import bbox_overlaps
from torch import from_numpy

from ..export_error import ExportError


@dataclass(frozen=True)
class Tolerance:
    """What counts as agreement.

    Attributes:
        score (float): largest difference of two matched scores.
        iou (float): smallest IoU of two matched boxes.
        matched (float): smallest share of the boxes that have a partner. Not 1: whether two boxes whose IoU is that of the NMS
            to seven digits are one object is decided by rounding.
        least_score (float): boxes below it are not compared.
        pixels (float): smallest share of pixels with the same label; of masks, smallest IoU over all of an image.
    """

    score: float
    iou: float
    matched: float
    least_score: float
    pixels: float


#: reduced precision moves scores by its rounding, and with them what NMS keeps among weak boxes
TOLERANCES = dict(
    fp32=Tolerance(score=1e-3, iou=0.98, matched=0.99, least_score=0.0, pixels=0.999),
    fp16=Tolerance(score=2e-2, iou=0.9, matched=0.95, least_score=0.3, pixels=0.99),
    bf16=Tolerance(score=1e-1, iou=0.7, matched=0.9, least_score=0.3, pixels=0.95),
)


@dataclass
class Agreement:
    """What was compared and how far it agreed; ``str`` of it is the report.

    Attributes:
        images (list): [N, H, W] of each batch.
        real (bool): whether they are images of the data set, not generated ones.
        boxes (int): compared.
        matched (float, optional): share of them with a partner.
        score (float): largest difference of matched scores.
        iou (float): smallest of matched boxes.
        masks (float, optional): smallest IoU of an image's masks.
        pixels (float, optional): share of pixels with the same label, of the worst image.
    """

    images: list[list[int]] = field(default_factory=list)
    real: bool = True
    boxes: int = 0
    matched: float | None = None
    score: float = 0.0
    iou: float = 1.0
    masks: float | None = None
    pixels: float | None = None

    def facts(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        count = sum(n for n, _, _ in self.images)
        sizes = ', '.join(dict.fromkeys(f'{h}x{w}' for _, h, w in self.images))
        words = [f'{count} {"images of the data set" if self.real else "generated images"} ({sizes})']
        if self.matched is not None:
            words.append(
                f'{self.boxes} boxes, {self.matched:.2%} matched, scores within {self.score:.1e}, IoU {self.iou:.4f} or more'
            )
        if self.masks is not None:
            words.append(f'masks agree to an IoU of {self.masks:.4f}')
        if self.pixels is not None:
            words.append(f'{self.pixels:.3%} of the pixels have the same label')
        return 'checked against torch on ' + ': '.join([words[0], '; '.join(words[1:])])


class Comparison:
    """Collects an :class:`Agreement` image by image.

    Args:
        tolerance (Tolerance): what is agreement.
        score_floor (float): of the model: weaker boxes are cut, whether one is right at it is decided by rounding.
    """

    def __init__(self, tolerance: Tolerance, score_floor: float = 0.0) -> None:
        self.tolerance, self.found = tolerance, Agreement()
        self._floor = max(tolerance.least_score, score_floor + 2 * tolerance.score if score_floor > 0 else 0.0)
        self._partners = 0

    def detections(self, found: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray], limit: int) -> list:
        """Compare the boxes of one image, both ways.

        Args:
            found, expected: dets (K, 5) and labels (K,), empty places left out.
            limit (int): the most boxes an image can have; where one has so many, its weakest are left out.

        Returns:
            list: pairs of places (found, expected) that are one box.
        """
        floor = self._floor_of(found[0], expected[0], limit)
        pairs = match(found, expected, self.tolerance.iou)
        for (dets, _), side in ((found, 0), (expected, 1)):
            strong = set(np.flatnonzero(dets[:, 4] > floor).tolist())
            self.found.boxes += len(strong)
            self._partners += len(strong & {pair[side] for pair in pairs})
        pairs = [pair for pair in pairs if expected[0][pair[1], 4] > floor]
        overlaps = _overlaps(found[0], expected[0])
        for mine, theirs in pairs:
            difference = abs(float(found[0][mine, 4] - expected[0][theirs, 4]))
            self.found.score = max(self.found.score, difference)
            self.found.iou = min(self.found.iou, float(overlaps[mine, theirs]))
        self.found.matched = self._partners / self.found.boxes if self.found.boxes else 1.0
        return pairs

    def _floor_of(self, found: np.ndarray, expected: np.ndarray, limit: int) -> float:
        """The score that a box must have to be compared; in half precision a model that is sure of nothing is compared, too."""
        cut = [dets[:, 4].min() + 2 * self.tolerance.score for dets in (found, expected) if len(dets) >= limit]
        floor = max([self._floor, *cut])
        sure = expected[:, 4].max() if len(expected) else 0.0
        return floor if sure > floor or not self.tolerance.least_score else float(sure) / 2

    def masks(self, found: np.ndarray, expected: np.ndarray) -> None:
        """Compare matched masks of one image, both (M, H, W), bool."""
        union = (found | expected).sum()
        iou = float((found & expected).sum() / union) if union else 1.0
        self.found.masks = iou if self.found.masks is None else min(self.found.masks, iou)

    def label_map(self, found: np.ndarray, expected: np.ndarray) -> None:
        """Compare (H, W) and (H, W)."""
        if found.shape != expected.shape:
            raise ExportError(f'the file returns a map of {found.shape}, torch one of {expected.shape}')
        same = float((found == expected).mean())
        self.found.pixels = same if self.found.pixels is None else min(self.found.pixels, same)

    def verdict(self) -> Agreement:
        """The agreement.

        Raises:
            ExportError: it is not enough.
        """
        found, wanted = self.found, self.tolerance
        bad = [
            found.matched is not None and not (found.matched >= wanted.matched and found.score <= wanted.score),
            found.masks is not None and not found.masks >= wanted.pixels - 0.01,
            found.pixels is not None and not found.pixels >= wanted.pixels,
        ]
        if any(bad):
            raise ExportError(f'the file does not agree with torch, no file is left: {found}; expected {wanted}')
        return found


def match(found: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray], least: float) -> list[tuple[int, int]]:
    """Pairs of boxes of one class, each box in at most one, the largest IoU first, down to ``least``."""
    overlaps = _overlaps(found[0], expected[0]) * (found[1][:, None] == expected[1][None])
    pairs: list[tuple[int, int]] = []
    taken: tuple[set, set] = (set(), set())
    for place in np.argsort(-overlaps, axis=None, kind='stable'):
        i, j = divmod(int(place), overlaps.shape[1])
        if overlaps[i, j] < least:
            break
        if i not in taken[0] and j not in taken[1]:
            pairs.append((i, j))
            taken[0].add(i)
            taken[1].add(j)
    return pairs


def _overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return bbox_overlaps(from_numpy(first[:, :4].copy()), from_numpy(second[:, :4].copy())).numpy()


def without_empty_places(dets: np.ndarray, labels: np.ndarray, *more: np.ndarray) -> Sequence[np.ndarray]:
    """The detections of one image that are there."""
    there = labels >= 0
    return [dets[there], labels[there], *(array[there] for array in more)]

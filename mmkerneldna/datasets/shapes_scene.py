"""One image of the generated *shapes* data set: textured, rotated, overlapping shapes on a cluttered background.

Shape letters: H, W image height and width in pixels, P polygon corners. Pixel (x, y) covers [x, x+1) x [y, y+1).

Everything is drawn on a canvas with ``MARGIN`` pixels to spare on each side and cropped at the end, so the full
(amodal) area of a truncated shape is simply the number of pixels painted.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np

from .shapes_art import CLASSES, LOYALTY, OUTLINES, TEXTURES, background, class_colour, photograph

CASES = ('plain', 'tiny', 'occluded', 'truncated', 'empty')
MARGIN = 80
MIN_VISIBLE = 0.4  # a shape painted later may not leave less of an earlier one in view
OCCLUDED_RANGE = (0.3, 0.6)  # visible share that counts as a hard, occluded object
TRUNCATED_RANGE = (0.35, 0.75)
RADIUS = (18, 44)
TINY_RADIUS = (4, 6)
MIN_RADIUS = 3.0
_SUBPIXEL_BITS = 4
_TRIES = 400


@dataclass
class Instance:
    """A shape in view.

    Attributes:
        label: index into ``OUTLINES``, 0-based.
        mask: (H, W) bool, the visible pixels; one outer contour per connected part and never a hole.
        visibility: visible pixels / all pixels of the shape, those outside the image included.
    """

    label: int
    mask: np.ndarray
    visibility: float


@dataclass
class Scene:
    """An image (H, W, 3) uint8 in BGR and the shapes in it, earliest painted first."""

    case: str
    image: np.ndarray
    instances: list[Instance]


@dataclass
class _Canvas:
    """The scene being painted. ``owner`` (canvas height, canvas width): 0 for background, i for ``labels[i - 1]``."""

    image: np.ndarray
    owner: np.ndarray
    scale: float = 1.0  # of the shapes
    labels: list[int] = field(default_factory=list)
    full_areas: list[int] = field(default_factory=list)

    @property
    def view(self) -> tuple[slice, slice]:
        return slice(MARGIN, self.owner.shape[0] - MARGIN), slice(MARGIN, self.owner.shape[1] - MARGIN)

    def visibilities(self, owner: np.ndarray, full_areas: list[int]) -> list[float]:
        counts = np.bincount(owner[self.view].ravel(), minlength=len(full_areas) + 1)[1:]
        return [count / full for count, full in zip(counts, full_areas)]


def _has_hole(mask: np.ndarray) -> bool:
    _, hierarchy = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return hierarchy is not None and bool((hierarchy[0, :, 3] >= 0).any())


def _silhouette(rng, shape: tuple[int, int], label: int, centre: tuple[float, float], radius: float) -> np.ndarray:
    """(canvas height, canvas width) bool: the outline, stretched a little, turned by any angle, filled."""
    angle, stretch = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 1.0)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = (OUTLINES[CLASSES[label]] * (1, stretch) * radius) @ turn.T + centre
    mask = np.zeros(shape, np.uint8)
    cv2.fillPoly(mask, [np.round(corners * 2**_SUBPIXEL_BITS).astype(np.int32)], 1, shift=_SUBPIXEL_BITS)
    return mask.astype(bool)


def _paint(rng, canvas: _Canvas, mask: np.ndarray, label: int, owner: np.ndarray) -> None:
    ys, xs = np.nonzero(mask)
    surroundings = canvas.image[mask].mean(axis=0)
    colour = class_colour(rng, label)
    while np.abs(colour - surroundings).max() < 60:  # a shape nobody could see teaches nothing
        colour = class_colour(rng, label)
    other = np.clip(colour * rng.choice([0.5, 1.6]), 0, 255)
    texture = TEXTURES[label if rng.uniform() < LOYALTY else rng.randint(len(TEXTURES))]
    mix = np.asarray(texture(rng, xs.astype(np.float32), ys.astype(np.float32)), np.float32)[:, None]
    canvas.image[mask] = (colour * (1 - mix) + other * mix).astype(np.uint8)
    canvas.owner = owner
    canvas.labels.append(label)
    canvas.full_areas.append(int(mask.sum()))


def _try_place(rng, canvas: _Canvas, centre, radius: float, accept: Callable[[list[float]], bool]) -> bool:
    """Paint one shape unless ``accept(visibilities)`` refuses or a visible part would get a hole."""
    label = int(rng.randint(len(CLASSES)))
    mask = _silhouette(rng, canvas.owner.shape, label, centre, radius)
    owner = canvas.owner.copy()
    owner[mask] = len(canvas.labels) + 1
    if not mask[canvas.view].any() or not accept(canvas.visibilities(owner, canvas.full_areas + [int(mask.sum())])):
        return False
    touched = set(np.unique(canvas.owner[mask])) - {0}
    if any(_has_hole(owner[canvas.view] == index) for index in touched):
        return False
    _paint(rng, canvas, mask, label, owner)
    return True


def _place(rng, canvas: _Canvas, radius_range, accept, near: np.ndarray | None = None, border: bool = False) -> bool:
    """Try random positions: anywhere, within 30 px of ``near``, or across the image border."""
    height, width = (side - 2 * MARGIN for side in canvas.owner.shape)
    for _ in range(_TRIES):
        radius = max(rng.uniform(*radius_range) * canvas.scale, MIN_RADIUS)
        inside = min(radius, height / 2 - 1, width / 2 - 1)
        centre = rng.uniform((inside, inside), (width - inside, height - inside))
        if near is not None:
            centre = near + rng.uniform(-30, 30, 2) * canvas.scale
        if border:
            axis = rng.randint(2)
            centre[axis] = rng.choice([0, (width, height)[axis]]) + rng.uniform(-0.4, 0.4) * radius
        if _try_place(rng, canvas, centre + MARGIN, radius, accept):
            return True
    return False


def _everything_visible(visibilities: list[float]) -> bool:
    return min(visibilities) >= MIN_VISIBLE


def _within(bounds: tuple[float, float], index: int) -> Callable[[list[float]], bool]:
    """Accept when object ``index`` is visible within ``bounds`` and every other one well enough."""

    def accept(visibilities: list[float]) -> bool:
        others = visibilities[:index] + visibilities[index:][1:]
        return bounds[0] <= visibilities[index] <= bounds[1] and (not others or min(others) >= MIN_VISIBLE)

    return accept


def _place_hard(rng, canvas: _Canvas, case: str) -> bool:
    """Add what makes the image a hard one; False when these shapes leave no room for it."""
    first = len(canvas.labels)
    if case == 'tiny':
        return all(_place(rng, canvas, TINY_RADIUS, _everything_visible) for _ in range(3))
    if case == 'truncated':
        return _place(rng, canvas, RADIUS, _within(TRUNCATED_RANGE, first), border=True)
    if case == 'occluded':
        return _place(rng, canvas, (20, 32), lambda shares: min(shares) >= MIN_VISIBLE and shares[first] > 0.99) and _place(
            rng, canvas, RADIUS, _within(OCCLUDED_RANGE, first), near=_centroid(canvas, first)
        )
    return True


def _centroid(canvas: _Canvas, index: int) -> np.ndarray:
    ys, xs = np.nonzero(canvas.owner == index + 1)
    return np.array([xs.mean(), ys.mean()]) - MARGIN


def _compose(rng, height: int, width: int, case: str, scale: float) -> _Canvas | None:
    image = background(rng, height + 2 * MARGIN, width + 2 * MARGIN)
    canvas = _Canvas(image, np.zeros(image.shape[:2], np.int32), scale)
    count = {'empty': 0, 'plain': rng.randint(3, 9)}.get(case, rng.randint(0, 4))
    for _ in range(count):
        _place(rng, canvas, RADIUS, _everything_visible)
    return canvas if _place_hard(rng, canvas, case) else None


def draw_scene(rng: np.random.RandomState, height: int, width: int, case: str = 'plain', scale: float = 1.0) -> Scene:
    """Draw one image.

    Args:
        rng: the only source of randomness. ``RandomState``, because its stream is frozen for all NumPy versions.
        height: image height in pixels, at least 96.
        width: image width in pixels, at least 96.
        case: one of ``CASES``; all but ``'plain'`` are the hard ones. ``'empty'`` has background and clutter only.
        scale: of the shapes; at 0.25 all are small ones (radius 3 to 11 pixels).

    Raises:
        ValueError: unknown case, or a side too small to hold the shapes.
    """
    if case not in CASES or min(height, width) < 96:
        raise ValueError(
            f'cannot draw a {case!r} scene of {width}x{height} pixels: expected a case among '
            f'{", ".join(CASES)} and sides of at least 96 pixels'
        )
    canvas = None
    while canvas is None:
        canvas = _compose(rng, height, width, case, scale)
    return Scene(case, photograph(rng, canvas.image[canvas.view]), _instances(canvas))


def _instances(canvas: _Canvas) -> list[Instance]:
    owner = canvas.owner[canvas.view]
    shares = canvas.visibilities(canvas.owner, canvas.full_areas)
    return [Instance(label, owner == index, float(share)) for index, (label, share) in enumerate(zip(canvas.labels, shares), 1)]

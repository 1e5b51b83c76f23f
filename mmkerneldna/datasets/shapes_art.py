"""What a scene of the generated shapes set is made of: outlines, textures, colours, background, and the camera.

Each function draws from the ``numpy.random.RandomState`` it is given and from nothing else.
"""

from collections.abc import Callable

import cv2
import numpy as np

# Share of shapes that wear their class's own hue, and its texture. They make a few hundred iterations enough to learn
# from scratch; only the outline always tells the class.
LOYALTY = 0.8


def _regular(corners: int, radii: tuple[float, ...] = (1.0,)) -> np.ndarray:
    angles = np.arange(corners) * 2 * np.pi / corners
    radius = np.resize(radii, corners)
    return np.stack([np.sin(angles) * radius, -np.cos(angles) * radius], axis=1)


def _cross(arm: float = 0.34) -> np.ndarray:
    a = arm
    return np.array(
        [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)]
    )


def _crescent(bite: float = 0.5, corners: int = 24) -> np.ndarray:
    """The unit disc less a disc of radius 0.85 whose centre lies ``bite`` to the right."""
    x = (1 + bite**2 - 0.85**2) / (2 * bite)
    outer_tip, inner_tip = np.arccos(x), np.arccos((x - bite) / 0.85)
    outer = np.linspace(outer_tip, 2 * np.pi - outer_tip, corners)
    inner = np.linspace(2 * np.pi - inner_tip, inner_tip, corners)[1:-1]
    outer_arc = np.stack([np.cos(outer), np.sin(outer)], axis=1)
    inner_arc = np.stack([bite + 0.85 * np.cos(inner), 0.85 * np.sin(inner)], axis=1)
    return np.concatenate([outer_arc, inner_arc])


# class name -> (P, 2) outline within the unit circle (the cross: the unit square)
OUTLINES: dict[str, np.ndarray] = {
    'circle': _regular(48),
    'square': _regular(4),
    'triangle': _regular(3),
    'star': _regular(10, (1.0, 0.45)),
    'cross': _cross(),
    'crescent': _crescent(),
}
CLASSES = tuple(OUTLINES)


def _solid(rng, x, y):
    return np.zeros_like(x)


def _stripes(rng, x, y):
    angle, period = rng.uniform(0, np.pi), rng.uniform(5, 10)
    return np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period) > 0


def _checks(rng, x, y):
    period = rng.randint(4, 8)
    return (x.astype(int) // period + y.astype(int) // period) % 2


def _dots(rng, x, y):
    period = rng.uniform(7, 11)
    return np.hypot(x % period - period / 2, y % period - period / 2) < period / 3


def _gradient(rng, x, y):
    angle = rng.uniform(0, 2 * np.pi)
    ramp = x * np.cos(angle) + y * np.sin(angle)
    return (ramp - ramp.min()) / max(np.ptp(ramp), 1e-6)


def _speckle(rng, x, y):
    return rng.uniform(0, 1, x.shape)


TEXTURES: tuple[Callable, ...] = (_solid, _stripes, _checks, _dots, _gradient, _speckle)


def background(rng, height: int, width: int) -> np.ndarray:
    """Two muted colours, smooth noise, and clutter: thin lines, arcs and blobs that are none of the shapes."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    first, second = rng.uniform(60, 190, (2, 1)) + rng.uniform(-25, 25, (2, 3))
    ramp = _gradient(rng, x, y)[..., None]
    clouds = cv2.resize(rng.uniform(-30, 30, (7, 7, 3)), (width, height), interpolation=cv2.INTER_CUBIC)
    canvas = np.clip(first * (1 - ramp) + second * ramp + clouds, 0, 255).astype(np.uint8)
    for _ in range(rng.randint(8, 20)):
        _draw_clutter(rng, canvas)
    return canvas


def _draw_clutter(rng, canvas: np.ndarray) -> None:
    height, width = canvas.shape[:2]
    colour = [int(c) for c in rng.randint(0, 256, 3)]
    start = (int(rng.randint(width)), int(rng.randint(height)))
    kind = rng.randint(3)
    if kind == 0:
        end = (int(start[0] + rng.randint(-60, 61)), int(start[1] + rng.randint(-60, 61)))
        cv2.line(canvas, start, end, colour, int(rng.randint(1, 3)), cv2.LINE_AA)
    elif kind == 1:
        axes, turn = (int(rng.randint(5, 30)), int(rng.randint(5, 30))), int(rng.randint(360))
        cv2.ellipse(canvas, start, axes, turn, 0, int(rng.randint(60, 200)), colour, 1, cv2.LINE_AA)
    else:
        cv2.circle(canvas, start, 1, colour, -1, cv2.LINE_AA)


def class_colour(rng, label: int) -> np.ndarray:
    """A saturated BGR colour (3,), mostly of the class's own hue."""
    hue = (label + rng.uniform(-0.3, 0.3)) / len(CLASSES) if rng.uniform() < LOYALTY else rng.uniform()
    hsv = np.array([hue % 1 * 179, rng.uniform(140, 255), rng.uniform(120, 255)]).astype(np.uint8)
    return cv2.cvtColor(hsv[None, None], cv2.COLOR_HSV2BGR)[0, 0].astype(float)


def photograph(rng, image: np.ndarray) -> np.ndarray:
    """Soften the hard edges and add sensor noise."""
    soft = cv2.GaussianBlur(image, (3, 3), 0.6).astype(np.float32)
    return np.clip(soft + rng.normal(0, 5, image.shape), 0, 255).astype(np.uint8)

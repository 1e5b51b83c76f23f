"""Read images to find the bad ones, and take part of lists that are too long to be read whole."""

import io
import os.path as osp
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
from mmengine import fileio
from mmengine.logging import print_log
from PIL import Image

from ..errors import DataError

Item = TypeVar('Item')
SCAN_LIMIT = 2000  # files read per data set: all of a small one in seconds, a fair part of COCO in a minute
_THREADS = 4  # the decoders release the GIL
_ORIENTATION = 0x0112  # EXIF; from 5 on the image is turned by a quarter


def spread(items: Sequence[Item], what: str, limit: int | None = None) -> list[Item]:
    """Return all items, or ``limit`` (``SCAN_LIMIT``) evenly spaced ones and say so in the log."""
    limit = SCAN_LIMIT if limit is None else limit
    if len(items) <= limit:
        return list(items)
    print_log(f'data check: reading {limit} of the {len(items)} {what}, evenly spaced', logger='current')
    return [items[i] for i in np.linspace(0, len(items) - 1, limit).round().astype(int)]


class Reading(NamedTuple):
    """What reading an image gave: what is wrong with it, or its (width, height) in pixels, upright as training sees it."""

    fault: str | None
    size: tuple[int, int] | None = None


def read_image(path: str, backend_args: dict | None = None) -> Reading:
    """Read an image completely.

    Pillow decides first because it refuses a truncated JPEG, which OpenCV fills with grey and returns; what Pillow
    does not know (some TIFF and EXR files) is fine when OpenCV reads it.
    """
    try:
        content = fileio.get(path, backend_args=backend_args)
    except FileNotFoundError:
        return Reading('missing')
    except OSError as error:
        return Reading(f'unreadable ({error.strerror or error})')
    if not content:
        return Reading('an empty file')
    try:
        return Reading(None, _pillow_size(content))
    except Image.UnidentifiedImageError:
        size = _opencv_size(content)
        return Reading(None if size else 'not an image', size)
    except Image.DecompressionBombError as error:
        return Reading(f'too large ({error})')
    except (OSError, SyntaxError, ValueError) as error:  # SyntaxError: Pillow's name for a broken PNG
        return Reading(f'corrupt ({error})')


def _pillow_size(content: bytes) -> tuple[int, int]:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', Image.DecompressionBombWarning)  # large, and still read
        image = Image.open(io.BytesIO(content))
    image.load()
    turned = image.getexif().get(_ORIENTATION, 1) >= 5
    return image.size[::-1] if turned else image.size


def _opencv_size(content: bytes) -> tuple[int, int] | None:
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:  # no side, or more pixels than OpenCV takes
        return None
    return None if image is None else image.shape[1::-1]


def read_images(paths: Sequence[str], backend_args: dict | None = None) -> list[Reading]:
    """Read every path, in their order."""
    return in_threads(lambda path: read_image(path, backend_args), paths)


def faulty_images(paths: Sequence[str], backend_args: dict | None = None) -> dict[str, str]:
    """Read every path.

    Returns:
        ``{path: fault}`` of the bad ones, in the order of ``paths``.
    """
    readings = zip(paths, read_images(paths, backend_args))
    return {path: reading.fault for path, reading in readings if reading.fault}


def in_threads(function: Callable, items: Iterable) -> list:
    """Results of ``function`` for all items, in their order."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(function, items))


def check_inside(paths: Sequence[str], roots: Sequence[str], where: str, stated_in: str) -> None:
    """Refuse paths that lead out of a data set by ``..`` or a leading slash.

    Raises:
        DataError: names the first ones.
    """
    roots = [osp.normpath(root) for root in roots if root]
    outside = [path for path in paths if not any(_is_below(osp.normpath(path), root) for root in roots)]
    if outside:
        raise DataError(
            f'{where}: {len(outside)} file names in {stated_in} leave the data set, {" and ".join(roots)}: '
            f'{listing(outside, 3)}; write them relative to the image folder'
        )


def _is_below(path: str, root: str) -> bool:
    return (root == '.' and not path.startswith(('..', '/'))) or path.startswith(root.rstrip('/') + '/')


def listing(names: Iterable[object], limit: int = 8) -> str:
    """``'a, b, c and 5 more'``, or ``'none'``."""
    words = [str(name) for name in names]
    more = f' and {len(words) - limit} more' if len(words) > limit else ''
    return ', '.join(words[:limit]) + more if words else 'none'

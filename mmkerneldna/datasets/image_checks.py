"""Find images that are missing or do not decode, and lists of files long enough to be checked in part."""
import io
from concurrent.futures import ThreadPoolExecutor
from typing import Dict, List, Optional, Sequence, TypeVar

import cv2
import numpy as np
from mmengine import fileio
from mmengine.logging import print_log
from PIL import Image

Item = TypeVar('Item')
SCAN_LIMIT = 2000  # files read per data set: all of a small one in seconds, a fair part of COCO in a minute
_THREADS = 4  # the decoders release the GIL


def spread(items: Sequence[Item], what: str, limit: Optional[int] = None) -> List[Item]:
    """Return all items, or ``limit`` (``SCAN_LIMIT``) evenly spaced ones and say so in the log."""
    limit = SCAN_LIMIT if limit is None else limit
    if len(items) <= limit:
        return list(items)
    print_log(f'data check: reading {limit} of the {len(items)} {what}, evenly spaced', logger='current')
    return [items[i] for i in np.linspace(0, len(items) - 1, limit).round().astype(int)]


def image_fault(path: str, backend_args: Optional[dict] = None) -> Optional[str]:
    """Say what is wrong with an image, or None.

    Pillow decides first because it refuses a truncated JPEG, which OpenCV fills with grey and returns; what Pillow
    does not know (some TIFF and EXR files) is fine when OpenCV reads it.
    """
    try:
        content = fileio.get(path, backend_args=backend_args)
    except FileNotFoundError:
        return 'missing'
    except OSError as error:
        return f'unreadable ({error})'
    if not content:
        return 'an empty file'
    try:
        Image.open(io.BytesIO(content)).load()
        return None
    except Image.UnidentifiedImageError:
        known = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED) is not None
        return None if known else 'not an image'
    except (OSError, SyntaxError, ValueError) as error:  # SyntaxError: Pillow's name for a broken PNG
        return f'corrupt ({error})'


def faulty_images(paths: Sequence[str], backend_args: Optional[dict] = None) -> Dict[str, str]:
    """Read every path.

    Returns:
        ``{path: fault}`` of the bad ones, in the order of ``paths``.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        faults = pool.map(lambda path: image_fault(path, backend_args), paths)
        return {path: fault for path, fault in zip(paths, faults) if fault}


def listing(names: Sequence[str], limit: int = 8) -> str:
    """``'a, b, c and 5 more'``, or ``'none'``."""
    names = [str(name) for name in names]
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(names[:limit]) + more if names else 'none'

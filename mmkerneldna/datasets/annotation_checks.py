"""Entries of a COCO file one by one: what would corrupt a training is refused, what mmdet drops is counted and listed."""

import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from numbers import Real
from typing import Any

from mmengine.logging import print_log

from ..errors import DataError
from .image_checks import listing

#: pixels; no coordinate of a real image is beyond, and a loss overflows on much larger ones
_LARGEST = 10**6
_NEEDED = dict(
    images=('id', 'file_name', 'height', 'width'),
    categories=('id', 'name'),
    annotations=('id', 'image_id', 'category_id', 'bbox', 'area'),
)


class _Refusals:
    """Raises the one message about an entry of a file."""

    def __init__(self, where: str, path: str) -> None:
        self.start = f'{where}: annotation file {path}'

    def __call__(self, what: str) -> None:
        raise DataError(f'{self.start}: {what}')


def check_entries(coco: dict, where: str, path: str) -> None:
    """Check that images, categories and annotations have what mmdet reads, and that no two share an id.

    Two annotations with one id are both read as the later one; of two images with one id the later gets the boxes of both.

    Raises:
        DataError: names the entry and its value.
    """
    refuse = _Refusals(where, path)
    for kind, keys in _NEEDED.items():
        if not isinstance(coco[kind], list):
            refuse(f'{kind} is a {type(coco[kind]).__name__}, expected a list')
        for index, entry in enumerate(coco[kind]):
            lacking = [key for key in keys if not isinstance(entry, dict) or entry.get(key) is None]
            if lacking:
                refuse(
                    f'{kind}[{index}] is {_short(entry)} and has no {listing(lacking)}; expected an object with {listing(keys)}'
                )
        _check_ids(coco[kind], kind, refuse)
    names = [category['name'] for category in coco['categories']]
    twice = [name for index, name in enumerate(names) if name in names[:index]]
    if twice:
        refuse(f'several categories are called {listing(twice)}; merge them, or give each its own name')
    for image in coco['images']:
        _check_image(image, refuse)


def _check_ids(entries: Sequence[dict], kind: str, refuse: _Refusals) -> None:
    seen, twice = set(), []
    for entry in entries:
        if not isinstance(entry['id'], (int, str)):
            refuse(f'{kind} have the id {_short(entry["id"])}; expected a number')
        if entry['id'] in seen:
            twice.append(entry['id'])
        seen.add(entry['id'])
    if twice:
        refuse(f'{len(twice)} {kind} have an id that another one has: {listing(twice)}; number them anew')


def _check_image(image: dict, refuse: _Refusals) -> None:
    if not isinstance(image['file_name'], str) or not image['file_name']:
        refuse(f'image {image["id"]} has the file_name {_short(image["file_name"])}; expected a name')
    size = image['width'], image['height']
    if not all(isinstance(side, (int, float)) and 1 <= side <= _LARGEST for side in size):
        refuse(f'image {image["id"]} ({image["file_name"]}) is {size[0]}x{size[1]} pixels; write the size that its file has')


def check_annotations(coco: dict, where: str, path: str, with_mask: bool = False) -> None:
    """Refuse boxes and masks that would corrupt a training; count and list, in one warning, what mmdet drops.

    Args:
        coco: content of the file, after :func:`check_entries`.
        where: the split, for messages.
        path: the file, for messages.
        with_mask: masks are trained, so every object needs one.

    Raises:
        DataError: a box that is not four finite numbers, an area that is no number, a mask that can't be read, or nothing
            left to train with.
    """
    refuse = _Refusals(where, path)
    images = {image['id']: image for image in coco['images']}
    categories = {category['id'] for category in coco['categories']}
    dropped: dict[str, list[str]] = defaultdict(list)
    for annotation in coco['annotations']:
        _check_values(annotation, refuse)
        why = _reason_to_drop(annotation, images, categories)
        if not why and with_mask:
            why = _mask_reason(annotation, images[annotation['image_id']], refuse)
        if why:
            dropped[why[0]].append(f'{annotation["id"]}: {why[1]}')
    if dropped:
        _report(dropped, len(coco['annotations']), refuse)


def _report(dropped: dict[str, list[str]], total: int, refuse: _Refusals) -> None:
    count = sum(map(len, dropped.values()))
    reasons = '; '.join(f'{len(entries)} {why} (annotation {listing(entries, 3)})' for why, entries in dropped.items())
    if count == total:
        refuse(f'none of its {total} annotations can be used: {reasons}')
    print_log(f'{refuse.start}: {count} of {total} annotations are dropped: {reasons}', logger='current', level=logging.WARNING)


def _check_values(annotation: dict, refuse: _Refusals) -> None:
    for key in ('image_id', 'category_id'):
        if not isinstance(annotation[key], (int, str)):
            refuse(f'annotation {annotation["id"]} has the {key} {_short(annotation[key])}; expected a number')
    box = annotation['bbox']
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_coordinate, box))):
        refuse(
            f'annotation {annotation["id"]} has the box {_short(box)}; expected [x, y, width, height], four finite numbers '
            'of pixels: correct or remove it'
        )
    if not isinstance(annotation['area'], Real) or not math.isfinite(annotation['area']):
        refuse(f'annotation {annotation["id"]} has the area {_short(annotation["area"])}; expected a finite number of pixels')


def _is_coordinate(value) -> bool:
    return isinstance(value, (int, float)) and -_LARGEST <= value <= _LARGEST


def _reason_to_drop(annotation: dict, images: dict, categories: set) -> tuple[str, object] | None:
    """Why mmdet passes an annotation over, and the value that it is about; None where it doesn't."""
    image, (x, y, width, height) = images.get(annotation['image_id']), annotation['bbox']
    if image is None:
        return 'of an image_id that no image has', annotation['image_id']
    if annotation['category_id'] not in categories:
        return 'of a category_id that no category has', annotation['category_id']
    if width < 1 or height < 1:
        return 'with a side below one pixel', annotation['bbox']
    if annotation['area'] <= 0:
        return 'without area', annotation['area']
    if min(x + width, image['width']) <= max(x, 0) or min(y + height, image['height']) <= max(y, 0):
        return 'outside of their image', annotation['bbox']
    return None


def _mask_reason(annotation: dict, image: dict, refuse: _Refusals) -> tuple[str, object] | None:
    """Why mmdet ignores the object of a mask."""
    mask: Any = annotation.get('segmentation')
    if not mask or not isinstance(mask, (list, dict)):
        refuse(
            f'annotation {annotation["id"]} has the segmentation {_short(mask)}, and masks are trained; add polygons or an '
            'RLE, or remove the annotation'
        )
    if isinstance(mask, dict):
        if list(mask.get('size', ())) != [image['height'], image['width']]:
            refuse(
                f'annotation {annotation["id"]} has an RLE of size {mask.get("size")}, and its image is '
                f'[{image["height"]}, {image["width"]}]'
            )
        return None if mask.get('counts') else ('without counts in their RLE', _short(mask))
    for polygon in mask:
        if not isinstance(polygon, list) or not all(map(_is_coordinate, polygon)):
            refuse(
                f'annotation {annotation["id"]} has the polygon {_short(polygon)}; expected [x0, y0, x1, y1, ...], finite '
                'numbers of pixels: correct or remove it'
            )
    if not any(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in mask):
        return 'without a polygon of three points', _short(mask)
    return None


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f'{text[:57]}...'

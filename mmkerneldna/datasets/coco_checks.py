"""Checks of COCO-style detection data: the files, the categories against the config's classes, the images."""

import difflib
import json
import logging
import os.path as osp
from collections.abc import Sequence

from mmengine import fileio
from mmengine.logging import print_log

from ..errors import DataError
from .annotation_checks import check_annotations, check_entries
from .image_checks import Reading, check_inside, listing, read_images, spread


def load_coco(path: str, where: str, backend_args=None) -> dict:
    """Read a COCO annotation file.

    Raises:
        DataError: missing, no JSON, or without images, annotations or categories.
    """
    if not fileio.exists(path, backend_args=backend_args):
        raise DataError(
            f'{where}: annotation file {path} does not exist; set ann_file (and data_root) to the COCO JSON of this split'
        )
    try:
        coco = json.loads(fileio.get_text(path, backend_args=backend_args))
    except OSError as error:
        raise DataError(f'{where}: annotation file {path} cannot be read ({error.strerror or error})') from None
    except (RecursionError, ValueError) as error:
        raise DataError(f'{where}: annotation file {path} is not JSON ({error}); restore or rewrite it') from None
    keys = ('images', 'annotations', 'categories')
    missing = [key for key in keys if not isinstance(coco, dict) or key not in coco]
    if missing:
        raise DataError(f'{where}: annotation file {path} has no {listing(missing)}; expected a COCO JSON with {listing(keys)}')
    return coco


def check_categories(names: Sequence[str], classes: Sequence[str], where: str, path: str) -> None:
    """Compare an annotation file's category names with the config's classes.

    A class that the file lacks is dropped silently by pycocotools: at best its AP is missing, with all of them
    gone the mAP is 0. Categories that the config does not name are fine (a subset is trained) and logged.

    Raises:
        DataError: a class has no category; lists both directions and the nearest names.
    """
    if isinstance(classes, str):
        raise DataError(
            f"{where}: metainfo classes is the string '{classes}', expected a tuple: write "
            f"classes=('{classes}', ) with the comma"
        )
    absent = [name for name in classes if name not in names]
    unused = [name for name in names if name not in classes]
    if absent:
        raise DataError(
            f'{where}: {len(absent)} of the {len(classes)} classes of the config are no category of '
            f'{path}: {listing(_with_nearest(absent, names))}. Categories that are no class of the config: '
            f"{listing(unused)}. Set metainfo=dict(classes=...) of the data set to the file's names"
        )
    if unused:
        print_log(
            f'{where}: {len(unused)} categories of {path} are not trained, the config does not name them: {listing(unused)}',
            logger='current',
        )
    numbered = [name for name in names if name in classes]
    if numbered != list(classes):
        print_log(
            f'{where}: mmdet numbers the classes as {path} lists them ({listing(numbered)}), the config lists '
            f'{listing(classes)}: scores are right, names under drawn boxes are not; take the order of the file',
            logger='current',
            level=logging.WARNING,
        )


def _with_nearest(absent: Sequence[str], names: Sequence[str]) -> list[str]:
    lowered = {name.lower(): name for name in names}
    described = []
    for name in absent:
        near = difflib.get_close_matches(name.lower(), lowered, n=1)
        described.append(f"'{name}' (nearest: '{lowered[near[0]]}')" if near else f"'{name}'")
    return described


def check_coco(dataset, where: str, pipeline: Sequence[dict] = ()) -> dict[str, str]:
    """Check one ``CocoDataset``, built lazily.

    Args:
        dataset: the data set.
        where: the split, for messages.
        pipeline: its transforms as the config states them; they say whether masks are trained.

    Returns:
        ``{image path: fault}`` of images that are missing, do not decode or have another size than stated.

    Raises:
        DataError: anything else that is wrong.
    """
    coco = load_coco(dataset.ann_file, where, dataset.backend_args)
    check_entries(coco, where, dataset.ann_file)
    names = [category['name'] for category in coco['categories']]
    check_categories(names, dataset.metainfo['classes'], where, dataset.ann_file)
    if not coco['images'] or not coco['annotations']:
        raise DataError(
            f'{where}: {dataset.ann_file} holds {len(coco["images"])} images and '
            f'{len(coco["annotations"])} annotations; expected at least one of each'
        )
    with_mask = any(step.get('with_mask') for step in pipeline if isinstance(step, dict))
    check_annotations(coco, where, dataset.ann_file, with_mask)
    return _image_faults(dataset, coco['images'], where)


def _image_faults(dataset, images: list[dict], where: str) -> dict[str, str]:
    folder = dataset.data_prefix['img']
    if not fileio.isdir(folder, backend_args=dataset.backend_args):
        raise DataError(
            f'{where}: image folder {folder} does not exist; set data_prefix=dict(img=...) (and data_root) '
            f'to the folder of the {len(images)} images that {dataset.ann_file} names'
        )
    stated = {osp.join(folder, image['file_name']): (image['width'], image['height']) for image in images}
    check_inside(list(stated), (folder, dataset.data_root), where, dataset.ann_file)
    paths = spread(list(stated), f'images of {where}')
    readings = zip(paths, read_images(paths, dataset.backend_args))
    return {path: fault for path, reading in readings if (fault := _fault(reading, stated[path]))}


def _fault(reading: Reading, stated: tuple[int, int]) -> str | None:
    """Boxes belong to the stated size. A quarter turn passes: some tools state the size before it, some after."""
    found = reading.size
    if reading.fault or found is None or sorted(found) == sorted(stated):
        return reading.fault
    return f'{found[0]}x{found[1]} pixels large, not {stated[0]}x{stated[1]} as its annotations say'


def drop_images(coco: dict, folder: str, paths: Sequence[str]) -> dict:
    """A copy of a COCO dict without some images and their annotations."""
    dropped = set(paths)
    images = [image for image in coco['images'] if osp.join(folder, image['file_name']) not in dropped]
    kept = {image['id'] for image in images}
    return dict(coco, images=images, annotations=[ann for ann in coco['annotations'] if ann['image_id'] in kept])

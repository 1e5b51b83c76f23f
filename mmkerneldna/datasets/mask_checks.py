"""Checks of segmentation data in folders of images and masks: the files, the labels against the classes."""

from collections import Counter
from pathlib import PurePath

import mmcv
import numpy as np
from mmengine import fileio

from ..errors import DataError
from .image_checks import Reading, check_inside, in_threads, listing, read_image, read_images, spread


def check_masks(dataset, where: str) -> dict[str, str]:
    """Check one ``BaseSegDataset``, built lazily.

    Returns:
        ``{image path: fault}`` of images or masks that are missing or do not decode (the path is the image's).

    Raises:
        DataError: anything else that is wrong.
    """
    items = _data_list(dataset, where)
    check_inside(
        [item['img_path'] for item in items], (dataset.data_prefix['img_path'], dataset.data_root), where, dataset.ann_file
    )
    items = spread(items, f'images of {where}')
    images = read_images([item['img_path'] for item in items], dataset.backend_args)
    faults = {item['img_path']: image.fault for item, image in zip(items, images) if image.fault}
    if 'seg_map_path' not in items[0]:
        return faults
    return {**_check_labels(dataset, items, images, where), **faults}


def _data_list(dataset, where: str) -> list[dict]:
    for key, meaning in (('img_path', 'image'), ('seg_map_path', 'mask')):
        folder = dataset.data_prefix.get(key)
        if folder and not fileio.isdir(folder, backend_args=dataset.backend_args):
            raise DataError(
                f'{where}: {meaning} folder {folder} does not exist; set data_prefix=dict({key}=...) (and data_root)'
            )
    if dataset.ann_file and not fileio.exists(dataset.ann_file, backend_args=dataset.backend_args):
        raise DataError(
            f'{where}: annotation file {dataset.ann_file} does not exist; set ann_file (and data_root) to '
            'the list of image names, or leave it out to use the whole folder'
        )
    if dataset.ann_file and fileio.isdir(dataset.ann_file, backend_args=dataset.backend_args):
        raise DataError(f'{where}: ann_file {dataset.ann_file} is a folder, expected a list of image names, one a line')
    items = dataset.load_data_list()
    if not items and dataset.ann_file:
        raise DataError(f'{where}: the list {dataset.ann_file} names no image; write one name a line, without ending')
    if not items:
        raise DataError(
            f"{where}: no image whose name ends in '{dataset.img_suffix}' in "
            f'{dataset.data_prefix["img_path"]}; there are files ending in {_endings(dataset)}: set '
            'img_suffix to the right one'
        )
    return items


def _endings(dataset) -> str:
    names = fileio.list_dir_or_file(
        dataset.data_prefix['img_path'], list_dir=False, recursive=True, backend_args=dataset.backend_args
    )
    counts = Counter(PurePath(name).suffix for name in names)
    return listing([f"'{ending}' ({count})" for ending, count in counts.most_common()])


def mask_labels(dataset, path: str) -> np.ndarray | None:
    """The labels of a mask as training sees them, after ``reduce_zero_label`` and the label map.

    Returns:
        (number of labels, ) int, sorted; None when the mask is no single-channel image.
    """
    content = fileio.get(path, backend_args=dataset.backend_args)
    mask = mmcv.imfrombytes(content, flag='unchanged', backend='pillow').squeeze()
    if mask.ndim != 2:
        return None
    labels = np.unique(mask).astype(int)
    if dataset.reduce_zero_label:
        labels = np.where(np.isin(labels, (0, 255)), 255, labels - 1)
    mapped = dataset.label_map or {}
    return np.unique([mapped.get(label, label) for label in labels.tolist()])


def _check_labels(dataset, items: list[dict], images: list[Reading], where: str) -> dict[str, str]:
    results = in_threads(lambda pair: _mask_result(dataset, pair[0]['seg_map_path'], pair[1]), zip(items, images))
    wrong = {item['seg_map_path']: labels for item, (_, labels) in zip(items, results) if len(labels)}
    if wrong:
        raise DataError(_labels_message(dataset, wrong, len(items), where))
    return {
        item['img_path']: f'its mask {item["seg_map_path"]} is {fault}' for item, (fault, _) in zip(items, results) if fault
    }


def _mask_result(dataset, path: str, image: Reading):
    mask = read_image(path, dataset.backend_args)
    if mask.fault:
        return mask.fault, ()
    labels = mask_labels(dataset, path)
    if labels is None:
        return 'a colour image (expected one channel of labels)', ()
    fault = (
        None
        if image.size is None or mask.size is None or image.size == mask.size
        else '{}x{} pixels large, the image {}x{}'.format(*mask.size, *image.size)
    )
    return fault, labels[(labels >= len(dataset.metainfo['classes'])) & (labels != dataset.ignore_index)]


def _labels_message(dataset, wrong: dict[str, np.ndarray], count: int, where: str) -> str:
    path, labels = max(wrong.items(), key=lambda item: len(item[1]))
    found = np.unique(np.concatenate(list(wrong.values())))
    hint = '' if dataset.reduce_zero_label else ', or set reduce_zero_label=True if label 0 means "no class"'
    classes = dataset.metainfo['classes']
    return (
        f'{where}: {len(wrong)} of {count} masks hold labels outside the {len(classes)} classes: {listing(found)} '
        f'(for example {path}: {listing(labels)}); expected 0-{len(classes) - 1} or {dataset.ignore_index} '
        f'(ignored){" after reduce_zero_label" if dataset.reduce_zero_label else ""}. Add the missing classes to '
        f'metainfo, or rewrite the labels{hint}'
    )

"""``check_data``: look at the data of a config before training starts, and say in one line what is wrong."""

import json
import os
import os.path as osp
import shlex
import tempfile
from collections.abc import Iterator, Sequence

from mmdet.datasets import CocoDataset
from mmengine import fileio
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS, DefaultScope
from mmseg.datasets import BaseSegDataset

from ..errors import DataError
from .coco_checks import check_coco, drop_images, load_coco
from .image_checks import listing
from .mask_checks import check_masks
from .shapes_dataset import ShapesDetDataset, ShapesSegDataset


def check_data(cfg: Config, splits: Sequence[str] = ('train', 'val'), on_corrupt: str = 'fatal') -> list[str]:
    """Check the data sets and evaluators of ``cfg``, through wrappers such as ``RepeatDataset``.

    Looked at: annotation files and folders exist, the sets are not empty, the categories are the config's classes,
    the masks hold no label outside the classes, every image and mask decodes. Files are read completely up to
    ``image_checks.SCAN_LIMIT`` per data set, beyond it in evenly spaced samples, which the log says. COCO-style and
    ``BaseSegDataset``-style sets are known; others are left alone.

    Args:
        cfg: a whole config. With ``on_corrupt='skip'`` it is changed: data sets and evaluators then read copies of
            their annotation files without the bad images, written to ``cfg.work_dir/data_check`` (a temporary
            folder without a work_dir).
        splits: which of train, val and test to look at; a split that the config lacks is passed over.
        on_corrupt: ``'fatal'``: missing and undecodable images raise; ``'skip'``: they are left out.

    Returns:
        the images left out.

    Raises:
        DataError: the first thing wrong; names the value, what was expected and what to do.
    """
    if on_corrupt not in ('fatal', 'skip'):
        raise DataError(f"on_corrupt is {on_corrupt!r}, expected 'fatal' or 'skip'")
    skipped = []
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')):
        for split in splits:
            for where, leaf in _leaves(cfg.get(f'{split}_dataloader'), split):
                skipped += _check_leaf(cfg, split, where, leaf, on_corrupt)
            _check_evaluators(cfg, split)
    return list(dict.fromkeys(skipped))


def _leaves(node, where: str) -> Iterator[tuple[str, dict]]:
    """The innermost data set configs below a dataloader or wrapper config."""
    if not node:
        return
    inner = node.get('datasets') or ([node['dataset']] if node.get('dataset') else [])
    for index, child in enumerate(inner):
        yield from _leaves(child, f'{where}[{index}]' if len(inner) > 1 else where)
    if not inner and 'type' in node:
        yield where, node


def _build_lazily(leaf: dict, where: str):
    """The data set itself knows best how its root, prefixes and classes combine."""
    try:
        return DATASETS.build(dict(leaf, pipeline=[], lazy_init=True))
    except (ValueError, TypeError, AssertionError, FileNotFoundError) as error:
        raise DataError(f'{where}: data set {leaf["type"]} cannot be built: {error}') from error


def _check_leaf(cfg: Config, split: str, where: str, leaf: dict, on_corrupt: str) -> list[str]:
    dataset = _build_lazily(leaf, where)
    _check_generated(dataset, where)
    if isinstance(dataset, CocoDataset):
        faults, write_without = check_coco(dataset, where, leaf.get('pipeline') or ()), _write_coco_without
    elif isinstance(dataset, BaseSegDataset):
        faults, write_without = check_masks(dataset, where), _write_list_without
    else:
        print_log(f'{where}: no data check for {type(dataset).__name__}', logger='current')
        return []
    if faults and on_corrupt == 'fatal':
        raise DataError(
            f'{where}: {len(faults)} images cannot be used: {_described(faults)}. Fix or remove them, or '
            'leave them out with --corrupt-images skip'
        )
    if faults:
        print_log(f'{where}: leaving out {len(faults)} images: {_described(faults)}', logger='current')
        leaf['ann_file'] = write_without(dataset, where, faults, _check_folder(cfg))
        _redirect_evaluators(cfg, split, dataset.ann_file, leaf['ann_file'])
    return list(faults)


def _check_generated(dataset, where: str) -> None:
    """The shapes are not downloaded or placed but made, so say how."""
    generated = isinstance(dataset, (ShapesDetDataset, ShapesSegDataset))
    root = (dataset.data_root or '').rstrip('/')
    if generated and root and not osp.isdir(root):
        raise DataError(
            f'{where}: the generated shapes set {root} does not exist: make it with `python '
            f'tools/make_shapes.py --data-root {shlex.quote(root)}`, or name its place by --cfg-options '
            'data_root=DIR'
        )


def _described(faults: dict[str, str]) -> str:
    return listing(
        [f'{path}: {fault}' if fault.startswith('its mask') else f'{path} is {fault}' for path, fault in faults.items()]
    )


def _redirect_evaluators(cfg: Config, split: str, old: str, new: str) -> None:
    """An evaluator that kept the old file would count every object of a skipped image as missed."""
    for evaluator in _evaluators(cfg, split):
        if evaluator.get('ann_file') and osp.abspath(evaluator['ann_file']) == osp.abspath(old):
            evaluator['ann_file'] = new


def _check_folder(cfg: Config) -> str:
    if not cfg.get('work_dir'):
        return tempfile.mkdtemp(prefix='data_check-')
    folder = osp.join(osp.abspath(cfg.work_dir), 'data_check')
    os.makedirs(folder, exist_ok=True)
    return folder


def _write_coco_without(dataset, where: str, faults: dict[str, str], folder: str) -> str:
    coco = load_coco(dataset.ann_file, where, dataset.backend_args)
    coco = drop_images(coco, dataset.data_prefix['img'], list(faults))
    if not coco['images']:
        raise DataError(f'{where}: no image is left of {dataset.ann_file} without the bad ones')
    return _write(osp.join(folder, f'{where}.json'), json.dumps(coco))


def _write_list_without(dataset, where: str, faults: dict[str, str], folder: str) -> str:
    root = dataset.data_prefix['img_path']
    names = [
        osp.relpath(item['img_path'], root)[: -len(dataset.img_suffix)]
        for item in dataset.load_data_list()
        if item['img_path'] not in faults
    ]
    if not names:
        raise DataError(f'{where}: no image is left of {root} without the bad ones')
    return _write(osp.join(folder, f'{where}.txt'), '\n'.join(names) + '\n')


def _write(path: str, text: str) -> str:
    """Write by rename: under DDP every process writes the same file, and none may read half of one."""
    temporary = f'{path}.{os.getpid()}'
    with open(temporary, 'w') as file:
        file.write(text)
    os.replace(temporary, path)
    return path


def _evaluators(cfg: Config, split: str) -> list[dict]:
    evaluator = cfg.get(f'{split}_evaluator') or []
    return [evaluator] if isinstance(evaluator, dict) else list(evaluator)


def _check_evaluators(cfg: Config, split: str) -> None:
    for evaluator in _evaluators(cfg, split):
        path = evaluator.get('ann_file')
        if path and not fileio.exists(path, backend_args=evaluator.get('backend_args')):
            raise DataError(
                f'{split}: annotation file {path} of evaluator {evaluator["type"]} does not exist; set '
                f"{split}_evaluator's ann_file to that of {split}_dataloader"
            )

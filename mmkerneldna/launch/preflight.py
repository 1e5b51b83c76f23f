"""Mistakes in a config that a library finds late, or never."""

import logging
from collections.abc import Iterator

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS, OPTIMIZERS, DefaultScope

from ..anatomy import trained_model
from ..errors import UsageError, unknown_type
from .predictions import innermost_dataset


def check_num_classes(cfg: Config) -> None:
    """Compare ``num_classes`` of the heads with the classes of the training set.

    More classes than the data has train without a word and fail at the first validation; fewer fail inside a loss.

    Raises:
        UsageError: they differ.
    """
    data = innermost_dataset(cfg.train_dataloader.dataset)
    if 'datasets' in data:
        return
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')):
        classes = DATASETS.build(dict(data, pipeline=[], lazy_init=True)).metainfo.get('classes')
    student = trained_model(cfg.model)
    for path, count in _head_classes(student, 'model' if student is cfg.model else 'model.student'):
        if classes is not None and count != len(classes):
            raise UsageError(
                f'{path}.num_classes is {count}, and the training set {data.type} has {len(classes)} '
                f'classes: set {path}.num_classes={len(classes)}'
            )


def _head_classes(node: dict, path: str) -> Iterator[tuple[str, int]]:
    """Heads that predict the classes of the data; others (RPN, edges, stuff) count something else."""
    for key, child in node.items():
        if not isinstance(child, dict):
            continue
        if key in ('bbox_head', 'decode_head') and 'num_classes' in child:
            yield f'{path}.{key}', child['num_classes']
        yield from _head_classes(child, f'{path}.{key}')


def warn_frozen_random(cfg: Config) -> None:
    """Say that stages are frozen at random weights, where a config freezes them and loads nothing."""
    model = trained_model(cfg.model)
    backbone = model.get('backbone', {})
    loads = cfg.get('load_from') or model.get('pretrained') or backbone.get('init_cfg')
    if backbone.get('frozen_stages', -1) >= 0 and not loads:
        print_log(
            f'the backbone freezes its stem and first {backbone.frozen_stages} stage(s) and loads no weights: '
            'they stay random. Give it weights (model.backbone.init_cfg.type=Pretrained '
            'model.backbone.init_cfg.checkpoint=FILE) or train all of it (model.backbone.frozen_stages=-1 '
            'model.backbone.norm_eval=False) by --cfg-options.',
            logger='current',
            level=logging.WARNING,
        )


def check_optimizer_type(cfg: Config) -> None:
    """Refuse a misspelt optimizer, of which mmengine says no more than "None is not a callable object".

    Raises:
        UsageError: names the nearest ones.
    """
    kind = cfg.get('optim_wrapper', {}).get('optimizer', {}).get('type')
    with OPTIMIZERS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
        if isinstance(kind, str) and registry.get(kind) is None:
            raise UsageError(unknown_type(kind, 'optimizer'))

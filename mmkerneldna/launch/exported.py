"""Exported files where the tools expect a checkpoint: the config gives the data and the evaluation, the file predicts."""

from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, DefaultScope

from ..deploy.file_meta import FileError, FileMeta, read_meta
from .predictions import innermost_dataset

#: task of a file -> what a config may ask of it
_SERVES = {'detection': ('detection',), 'instance': ('detection', 'instance'), 'segmentation': ('segmentation',)}
LISTED = 5


def use_exported_file(cfg: Config, path: str | Path) -> FileMeta:
    """Let a config's evaluation run an exported file in the place of its model, in place.

    Args:
        cfg: a whole config with its test data.
        path: of the file.

    Returns:
        FileMeta: of the file.

    Raises:
        FileError: it can't be read, or is one of another task or of other classes than the config's.
    """
    meta = read_meta(path)
    check_fits(cfg, meta, path)
    scope = cfg.get('default_scope', 'mmengine')
    cfg.model = ConfigDict(type='ExportedModel', file=str(path), original=cfg.model, scope=scope)
    cfg.load_from, cfg.resume = None, False
    return meta


def check_fits(cfg: Config, meta: FileMeta, path: str | Path) -> None:
    """Refuse a file of another task or of other classes than a config's test set has.

    Raises:
        FileError: names both.
    """
    wanted = task_of_config(cfg)
    meta.check_whole(path)
    if wanted not in _SERVES[meta.task]:
        raise FileError(f'{path} is a file for {meta.task} (config {meta.config or "unknown"}), the config is for {wanted}')
    classes = test_classes(cfg)
    if classes is not None and meta.classes and list(meta.classes) != list(classes):
        raise FileError(
            f'{path} knows {len(meta.classes)} classes ({_some(meta.classes)}), the test set of the config has '
            f'{len(classes)} ({_some(classes)}): test it with the config it was exported from, {meta.config or "unknown"}'
        )


def task_of_config(cfg: Config) -> str:
    """'segmentation', 'instance' where masks are evaluated, or 'detection'."""
    if cfg.get('default_scope') == 'mmseg':
        return 'segmentation'
    evaluators = cfg.get('test_evaluator') or []
    metrics = [item.get('metric') for item in (evaluators if isinstance(evaluators, list) else [evaluators])]
    return 'instance' if any('segm' in ([m] if isinstance(m, str) else m or []) for m in metrics) else 'detection'


def test_classes(cfg: Config) -> Sequence[str] | None:
    """Names of the classes of the test set, in order; None where it does not say."""
    data = innermost_dataset(cfg.test_dataloader.dataset)
    if 'datasets' in data:
        return None
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')):
        return DATASETS.build(dict(data, pipeline=[], lazy_init=True)).metainfo.get('classes')


def _some(names: Sequence[str]) -> str:
    return ', '.join(names[:LISTED]) + (', ...' if len(names) > LISTED else '')

"""What tools/test.py may do with predictions: augment, draw, keep."""

from copy import deepcopy

from mmengine.config import Config, ConfigDict

from ..errors import UsageError


def use_tta(cfg: Config) -> None:
    """Test-time augmentation as the config states it; for detection flips where it states none.

    Raises:
        UsageError: a segmentation config without ``tta_model`` and ``tta_pipeline``.
    """
    if cfg.get('default_scope') == 'mmdet':
        _default_detection_tta(cfg)
    if 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
        raise UsageError('--tta needs tta_model and tta_pipeline in the config')
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    innermost_dataset(cfg.test_dataloader.dataset).pipeline = cfg.tta_pipeline


def _default_detection_tta(cfg: Config) -> None:
    cfg.setdefault(
        'tta_model', dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
    )
    if 'tta_pipeline' in cfg:
        return
    pipeline = deepcopy(innermost_dataset(cfg.test_dataloader.dataset).pipeline)
    keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')
    flips = [dict(type='RandomFlip', prob=prob) for prob in (1.0, 0.0)]
    pipeline[-1] = dict(type='TestTimeAug', transforms=[flips, [dict(type='PackDetInputs', meta_keys=keys)]])
    cfg.tta_pipeline = pipeline


def innermost_dataset(dataset: ConfigDict) -> ConfigDict:
    """The data set config inside wrappers such as RepeatDataset."""
    while 'dataset' in dataset:
        dataset = dataset.dataset
    return dataset


def draw_predictions(cfg: Config, show: bool, show_dir: str | None, wait_time: float) -> None:
    """Turn the visualization hook on, on screen or into files.

    Raises:
        UsageError: the config has none.
    """
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise UsageError('--show and --show-dir need a visualization hook in default_hooks')
    hook.draw = True
    if show:
        hook.update(show=True, wait_time=wait_time)
    if show_dir and cfg.get('default_scope') == 'mmdet':
        hook.test_out_dir = show_dir
    elif show_dir:
        cfg.visualizer.save_dir = show_dir


def dump_predictions(cfg: Config, out: str) -> None:
    """Keep the predictions: a pickle for detection, a folder of label maps for segmentation.

    Raises:
        UsageError: a detection output that is not named ``*.pkl``.
    """
    if cfg.get('default_scope') == 'mmseg':
        cfg.test_evaluator.update(output_dir=out, keep_results=True)
        return
    if not out.endswith(('.pkl', '.pickle')):
        raise UsageError(f'--out {out} must be named *.pkl for a detector')
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    cfg.test_evaluator = [*evaluators, dict(type='DumpDetResults', out_file_path=out)]

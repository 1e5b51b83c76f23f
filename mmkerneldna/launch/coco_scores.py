"""COCO scores by faster-coco-eval where it is installed: C++ in place of Python, the same numbers."""

import importlib.util
import logging

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import METRICS

SLOW, FAST = 'CocoMetric', 'FasterCocoMetric'


def use_fast_coco_scores(cfg: Config) -> None:
    """Let mmdet's ``FasterCocoMetric`` evaluate where the config says ``CocoMetric``, in place; say so once.

    A metric derived from ``CocoMetric`` is left alone. So is everything where faster-coco-eval is missing, or mmdet has no such
    metric.
    """
    if importlib.util.find_spec('faster_coco_eval') is None or METRICS.get(f'mmdet.{FAST}') is None:
        return
    if sum(_replace(cfg.get(key)) for key in ('val_evaluator', 'test_evaluator')):
        print_log(
            f'COCO scores come from faster-coco-eval ({FAST} in place of {SLOW}): the same numbers, sooner',
            logger='current',
            level=logging.INFO,
        )


def _replace(evaluator) -> int:
    metrics = evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]
    found = [metric for metric in metrics if metric and metric.get('type') in (SLOW, f'mmdet.{SLOW}')]
    for metric in found:
        metric['type'] = metric['type'].replace(SLOW, FAST)
        metric.pop('use_mp_eval', None)  # processes of the Python code; C++ has threads
    return len(found)

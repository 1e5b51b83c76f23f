"""A detector that finds nothing at all has scores too: zero."""

from typing import Any

from mmdet.evaluation import CocoMetric
from mmengine.evaluator import Evaluator

COCO_SCORES = ('mAP', 'mAP_50', 'mAP_75')


def fill_empty_scores(metrics: dict[str, Any], evaluator: Evaluator) -> dict[str, Any]:
    """Give the AP 0 where mmdet's ``CocoMetric`` leaves its scores out.

    Without a single detection ``CocoMetric`` returns no metrics, and ``save_best='coco/bbox_mAP'`` then ends the
    training with a KeyError. That happens in the first epochs of a run from scratch, and to a failed one.

    Args:
        metrics (dict): of one evaluation; completed in place.
        evaluator (Evaluator): that made them.

    Returns:
        dict: what was added.
    """
    added = {}
    for metric in evaluator.metrics:
        if isinstance(metric, CocoMetric):
            added.update(
                {
                    f'{metric.prefix}/{kind}_{score}': 0.0
                    for kind in metric.metrics
                    for score in COCO_SCORES
                    if kind in ('bbox', 'segm') and f'{metric.prefix}/{kind}_mAP' not in metrics
                }
            )
    metrics.update(added)
    return added

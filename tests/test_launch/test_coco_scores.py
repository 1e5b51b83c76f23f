"""COCO scores of faster-coco-eval against pycocotools, on made-up annotations and detections."""

import json

import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric
from mmengine.config import Config
from mmengine.registry import METRICS
from pycocotools import mask as mask_api

from mmkerneldna.launch.coco_scores import use_fast_coco_scores

SIZE = 240


def box_mask(x, y, w, h):
    mask = np.zeros((SIZE, SIZE), np.uint8, order='F')
    mask[int(y) : int(y + h), int(x) : int(x + w)] = 1
    return mask


def annotations(rng, path):
    """Boxes of all three area ranges, crowds, images without any, a category that never appears."""
    items = []
    for image in range(12):
        for _ in range(rng.integers(0, 9) if image else 0):
            side = rng.choice([12, 50, 130])
            x, y = rng.uniform(0, SIZE - side, 2).round(1)
            w, h = (side * rng.uniform(0.6, 1, 2)).round(1)
            items.append(
                dict(
                    id=len(items) + 1,
                    image_id=image,
                    category_id=int(rng.integers(1, 4)),
                    area=float(w * h),
                    bbox=[float(x), float(y), float(w), float(h)],
                    iscrowd=int(rng.random() < 0.1),
                    segmentation=_rle(box_mask(x, y, w, h)),
                )
            )
    content = dict(
        images=[dict(id=i, file_name=f'{i}.png', height=SIZE, width=SIZE) for i in range(12)],
        annotations=items,
        categories=[dict(id=i, name=f'c{i}') for i in range(1, 5)],
    )
    path.write_text(json.dumps(content))
    return items


def _rle(mask):
    rle = mask_api.encode(mask)
    return dict(size=rle['size'], counts=rle['counts'].decode())


def predictions(rng, items):
    """Shifted copies, doubles, wrong classes and false alarms, with tied scores among them."""
    for image in range(12):
        boxes, labels, scores = [], [], []
        for item in (item for item in items if item['image_id'] == image):
            for _ in range(rng.integers(0, 3)):
                x, y, w, h = np.array(item['bbox']) + rng.normal(0, 0.08 * item['bbox'][2], 4)
                boxes.append([x, y, x + max(w, 2), y + max(h, 2)])
                labels.append(item['category_id'] - 1 if rng.random() < 0.85 else int(rng.integers(0, 4)))
                scores.append(round(float(rng.random()), 1))
        boxes += [[10, 10, 40, 60], [100, 20, 220, 200]]
        labels, scores = [*labels, 0, 2], [*scores, 0.3, 0.9]
        masks = np.stack([box_mask(max(x, 0), max(y, 0), a - x, b - y) for x, y, a, b in boxes])
        yield dict(
            img_id=image,
            ori_shape=(SIZE, SIZE),
            pred_instances=dict(
                bboxes=torch.tensor(boxes),
                labels=torch.tensor(labels),
                scores=torch.tensor(scores),
                masks=torch.from_numpy(masks.astype(bool)),
            ),
        )


def evaluate(kind, path, samples, **settings):
    metric = METRICS.build(dict(type=f'mmdet.{kind}', ann_file=str(path), **settings))
    metric.dataset_meta = dict(classes=('c1', 'c2', 'c3', 'c4'))
    metric.process({}, samples)
    return metric.evaluate(size=12)


@pytest.mark.parametrize('seed', range(3))
def test_the_numbers_are_the_same(seed, tmp_path):
    rng = np.random.default_rng(seed)
    items = annotations(rng, tmp_path / 'ann.json')
    samples = list(predictions(rng, items))
    settings = dict(metric=['bbox', 'segm'], classwise=True)
    slow = evaluate('CocoMetric', tmp_path / 'ann.json', samples, **settings)
    fast = evaluate('FasterCocoMetric', tmp_path / 'ann.json', samples, **settings)
    assert 0.05 < slow['coco/bbox_mAP'] < 0.9 and {'coco/segm_mAP_s', 'coco/bbox_mAP_l'} <= set(slow)
    assert fast == pytest.approx(slow, abs=1e-9, nan_ok=True)


def test_recall_of_proposals_is_the_same(tmp_path):
    rng = np.random.default_rng(5)
    items = annotations(rng, tmp_path / 'ann.json')
    samples = list(predictions(rng, items))
    slow, fast = (
        evaluate(kind, tmp_path / 'ann.json', samples, metric='proposal') for kind in ('CocoMetric', 'FasterCocoMetric')
    )
    assert len(slow) == 6 and fast == pytest.approx(slow, abs=1e-9)


def test_the_config_changes_where_it_says_coco_metric():
    cfg = Config(
        dict(
            val_evaluator=dict(type='CocoMetric', ann_file='a', use_mp_eval=True),
            test_evaluator=[
                dict(type='mmdet.CocoMetric'),
                dict(type='DumpDetResults'),
                dict(type='CocoOccludedSeparatedMetric'),
            ],
        )
    )
    use_fast_coco_scores(cfg)
    assert cfg.val_evaluator == dict(type='FasterCocoMetric', ann_file='a')
    assert [item.type for item in cfg.test_evaluator] == [
        'mmdet.FasterCocoMetric',
        'DumpDetResults',
        'CocoOccludedSeparatedMetric',
    ]
    assert issubclass(METRICS.get('mmdet.FasterCocoMetric'), CocoMetric)


def test_without_the_package_nothing_changes(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    cfg = Config(dict(val_evaluator=dict(type='CocoMetric'), test_evaluator=dict(type='IoUMetric')))
    use_fast_coco_scores(cfg)
    assert cfg.val_evaluator.type == 'CocoMetric'

"""Calibration images and evaluations of a part of the test set."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import nn

from mmkerneldna import launch
from mmkerneldna.datasets import ShapesSpec, generate_shapes
from mmkerneldna.errors import DataError, UsageError
from mmkerneldna.launch.calibration import calibration_images
from mmkerneldna.launch.evaluation import Evaluation, main_score


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Twelve images to train with, three to test with."""
    spec = ShapesSpec(train_images=12, val_images=3, min_side=96, max_side=128)
    return generate_shapes(tmp_path_factory.mktemp('data') / 'shapes', spec)


def config(name, data, work_dir=None) -> Config:
    cfg = launch.load_config(f'mmkerneldna::shapes/{name}_shapes.py', dict(data_root=str(data)))
    cfg.work_dir = str(work_dir)
    return cfg


def test_they_are_the_training_images_unchanged(data):
    images = calibration_images(config('upernet_r18', data), 12)
    files = {path.name: cv2.imread(str(path)).transpose(2, 0, 1) for path in (data / 'images' / 'training').iterdir()}
    assert len(images) == 12 and all(image.dtype == np.uint8 for image in images)
    for image in images:
        assert sum(image.shape == file.shape and np.array_equal(image, file) for file in files.values()) == 1
    again = calibration_images(config('upernet_r18', data), 10)
    assert all(np.array_equal(a, b) for a, b in zip(again, images))
    other = calibration_images(config('upernet_r18', data), 10, seed=1)
    assert not all(a.shape == b.shape and np.array_equal(a, b) for a, b in zip(again, other))


@pytest.mark.parametrize('count, error, message', [(9, UsageError, 'at least 10'), (13, DataError, 'has 12 images, too few')])
def test_too_few(count, error, message, data):
    with pytest.raises(error, match=message):
        calibration_images(config('upernet_r18', data), count)


def test_no_training_set_and_no_file(data):
    cfg = config('upernet_r18', data)
    cfg.train_dataloader = None
    with pytest.raises(DataError, match='no train_dataloader with a dataset'):
        calibration_images(cfg, 10)
    cfg = config('upernet_r18', data)
    cfg.train_dataloader.dataset.img_suffix = '.gone'
    cfg.train_dataloader.dataset.data_prefix.img_path = 'nowhere'
    with pytest.raises(DataError):
        calibration_images(cfg, 10)


class Oracle(nn.Module):
    """Predicts what is annotated."""

    def test_step(self, data):
        for sample in data['data_samples']:
            boxes = sample.gt_instances.bboxes
            boxes = getattr(boxes, 'tensor', boxes)  # loaded behind the resizing: those of the original image
            labels = sample.gt_instances.labels
            sample.pred_instances = InstanceData(bboxes=boxes, labels=labels, scores=torch.ones(len(labels)))
        return data['data_samples']


@pytest.mark.parametrize('images', [1, None])
def test_objects_of_other_images_are_not_missed(images, data, tmp_path):
    evaluation = Evaluation(config('faster-rcnn_r18_fpn', data, tmp_path), images)
    assert len(evaluation.dataset) == (images or 3)
    score, value = main_score(evaluation(Oracle()))
    assert score.name == 'box_ap' and value == pytest.approx(100, abs=0.2)


def test_no_score_that_is_known():
    with pytest.raises(UsageError, match='gives no score that is known here: coco/bbox_mAP'):
        main_score({'loss': 1.0})

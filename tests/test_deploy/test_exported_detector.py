"""A whole two-stage detector as a file: in the original image's coordinates as mmdet predicts it, and in int8."""

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from test_end2end_detector import detector
from torch import nn

from mmkerneldna.deploy.end2end import EndToEnd, export_whole
from mmkerneldna.deploy.end2end.agreement import match
from mmkerneldna.deploy.end2end.export import generated_images
from mmkerneldna.deploy.exported_model import ExportedModel
from mmkerneldna.deploy.quantise import _READ, quantise

SIZE = (96, 128)
CLASSES = [f'class{index}' for index in range(80)]


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """A narrow Mask R-CNN and its file."""
    net = detector('mask')
    path = tmp_path_factory.mktemp('det') / 'net.onnx'
    export_whole(net, EndToEnd(path, 'onnx', SIZE, classes=CLASSES, images=generated_images(SIZE, 1)))
    return net, path


@torch.no_grad()
def predict(model, images, scale):
    """Samples of images that were resized by ``scale``, (w, h)."""
    original = round(SIZE[0] / scale[1]), round(SIZE[1] / scale[0])
    meta = dict(ori_shape=original, img_shape=SIZE, scale_factor=scale)
    samples = [DetDataSample(metainfo=meta) for _ in images]
    found = model.test_step(dict(inputs=[torch.from_numpy(image) for image in images], data_samples=samples))
    return [sample.pred_instances.numpy() for sample in found]


def test_the_original_image_as_mmdet_has_it(exported):
    net, path = exported
    images = generated_images(SIZE, 2)
    mine, theirs = (predict(model, images, (0.5, 0.8)) for model in (ExportedModel(str(path)), net))
    for found, expected in zip(mine, theirs):
        boxes = [np.concatenate([r.bboxes, r.scores[:, None]], 1) for r in (found, expected)]
        pairs = match((boxes[0], found.labels), (boxes[1], expected.labels), 0.99)
        assert len(pairs) >= len(expected.scores) - 1 > 3
        assert found.masks.shape[1:] == expected.masks.shape[1:] == (120, 256)
        assert np.mean([(found.masks[i] == expected.masks[j]).mean() for i, j in pairs]) > 0.999


def test_int8_keeps_boxes_in_float(exported, tmp_path):
    net, path = exported
    selection = _READ['onnx'](path)
    weighing = sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in net.modules())
    assert len(selection.layers) >= weighing  # a head shared by levels counts once for each
    out = tmp_path / path.name
    report = quantise(path, out, generated_images(SIZE, 10))
    assert report.layers + len(report.last_float) == len(selection.layers) and report.layers > weighing / 2
    images = generated_images(SIZE, 2)
    for found, expected in zip(*(predict(ExportedModel(str(file)), images, (1.0, 1.0)) for file in (out, path))):
        assert len(found.scores) > 3 and np.isfinite(found.bboxes).all()
        assert (found.bboxes >= 0).all() and (found.bboxes <= [SIZE[1], SIZE[0]] * 2).all()
        assert abs(found.scores.max() - expected.scores.max()) < 0.2
        # the image's borders are met exactly: coordinates did not go through 256 steps
        assert len(np.unique(found.bboxes)) > 0.5 * found.bboxes.size

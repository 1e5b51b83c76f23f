"""Exported detectors against mmdet's own predictions."""

import json

import numpy as np
import onnx
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.hub import get_config
from mmengine.registry import MODELS, DefaultScope
from test_deploy_models import BACKBONE, CHANNELS, narrowed, small_model
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmkerneldna.deploy.end2end import EndToEnd, export_whole
from mmkerneldna.deploy.end2end.agreement import match, without_empty_places
from mmkerneldna.deploy.end2end.check import paste
from mmkerneldna.deploy.end2end.export import generated_images
from mmkerneldna.deploy.export_error import ExportError
from mmkerneldna.deploy.runners import FileRunner

SUFFIXES = dict(onnx='.onnx', openvino='.xml', pt2='.pt2')
CONFIGS = dict(fcos='mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', rtmdet='mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py')
#: standard deviation of the last layers' weights, so that scores spread without being 0 or 1
SPREAD = dict(
    retina_cls=0.03, rpn_cls=0.03, fc_cls=0.5, fc_reg=0.1, conv_logits=0.03, conv_cls=0.1, conv_centerness=0.1, conv_reg=0.01
)


def other_model(name):
    """FCOS on the small backbone; the tiniest of RTMDet."""
    cfg = get_config(CONFIGS[name])
    model = cfg.model
    if name == 'fcos':
        model.backbone = BACKBONE
        model.neck.update(in_channels=CHANNELS, out_channels=32, start_level=1)
        model.bbox_head = dict(narrowed(model.bbox_head.to_dict()), in_channels=32, feat_channels=64)
    else:
        model.backbone.update(init_cfg=None, widen_factor=0.125)
        model.neck.update(in_channels=[32, 64, 128], out_channels=16)
        model.bbox_head.update(in_channels=16, feat_channels=16, num_classes=4)
        model.test_cfg.update(nms_pre=300, max_per_img=50, score_thr=0.05)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        net = MODELS.build(cfg.model)
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    return net.eval()


def detector(name):
    """A narrow random detector with the limits of a small image."""
    net = other_model(name) if name in CONFIGS else small_model(name)
    for path, module in net.named_modules():
        std = SPREAD.get(path.rpartition('.')[2])
        if std is not None:
            nn.init.normal_(module.weight, 0, std)
        if 'rtm_cls' in path and isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0, 0.5)
    if hasattr(net, 'roi_head'):
        net.rpn_head.test_cfg.update(nms_pre=100, max_per_img=60)
        net.roi_head.test_cfg.max_per_img = 30
    elif name != 'rtmdet':
        net.bbox_head.test_cfg.update(nms_pre=100, max_per_img=30)
    return net


@torch.no_grad()
def predictions(net, images):
    """What mmdet predicts on images of one size."""
    meta = dict(ori_shape=images.shape[2:], img_shape=images.shape[2:], scale_factor=(1.0, 1.0))
    samples = [DetDataSample(metainfo=meta) for _ in images]
    found = net.test_step(dict(inputs=list(torch.from_numpy(images)), data_samples=samples))
    return [sample.pred_instances.numpy() for sample in found]


def assert_agrees(net, run, sizes):
    """Boxes, labels, scores and masks of a file against mmdet's, all but the weakest, which the limit may cut."""
    for size, count in sizes:
        images = np.stack(generated_images(size, count))
        outputs = run(images)
        for place, expected in enumerate(predictions(net, images)):
            dets, labels, *masks = without_empty_places(*(output[place] for output in outputs.values()))
            assert len(dets) == len(expected.scores) > 2 and np.ptp(expected.scores) > 0.01
            theirs = np.concatenate([expected.bboxes, expected.scores[:, None]], 1)
            pairs = match((dets, labels), (theirs, expected.labels), 0.99)
            assert len(pairs) >= len(dets) - 1
            for i, j in pairs:
                assert abs(dets[i, 4] - theirs[j, 4]) < 1e-3
            if masks:
                mine = paste(masks[0], dets, size, run.meta.mask_threshold)
                agree = np.mean([(mine[i] == expected.masks[j]).mean() for i, j in pairs])
                assert agree > 0.999 and 0.001 < expected.masks.mean() < 0.9
        assert (outputs['labels'][dets_empty(outputs)] == -1).all()


def dets_empty(outputs):
    """Places without a score; they hold nothing at all."""
    empty = outputs['dets'][..., 4] == 0
    assert not outputs['dets'][empty].any()
    return empty


@pytest.mark.parametrize(
    'name, file_format, dynamic',
    [
        ('retina', 'onnx', 'both'),
        ('mask', 'onnx', 'both'),
        ('faster', 'onnx', 'none'),
        ('fcos', 'onnx', 'both'),
        ('rtmdet', 'onnx', 'both'),
        ('mask', 'openvino', 'none'),
    ],
)
def test_detections_are_those_of_mmdet(name, file_format, dynamic, tmp_path):
    net, path = detector(name), tmp_path / f'net{SUFFIXES[file_format]}'
    first, other = ((96, 128), (64, 96)) if name == 'rtmdet' else ((72, 100), (101, 67))  # RTMDet pads nothing
    meta, agreement = export_whole(net, EndToEnd(path, file_format, first, dynamic, 'x', list('abcd')))
    assert meta.input['side_multiple'] == (32 if name == 'rtmdet' else 1)
    assert agreement.boxes > 20 and agreement.matched >= 0.99 and agreement.score < 1e-3 and not agreement.real
    assert meta.outputs == ['dets', 'labels', 'masks'][: 3 if name == 'mask' else 2]
    assert meta.task == ('instance' if name == 'mask' else 'detection')
    sizes = [(first, 1), (first, 3), (other, 2)][: dict(none=1, batch=2, both=3)[dynamic]]
    assert_agrees(net, FileRunner(path, threads=1), sizes)
    if file_format == 'onnx':
        model = onnx.load(str(path))
        assert {entry.domain for entry in model.opset_import} == {''} and not model.functions
        assert json.loads(model.metadata_props[0].value)['classes'] == list('abcd')
        assert 'NonMaxSuppression' in {node.op_type for node in model.graph.node}


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda net: net.bbox_head.test_cfg.update(nms=dict(type='soft_nms', iou_threshold=0.5)), "bbox_head: .*'soft_nms'"),
        (lambda net: net.bbox_head.test_cfg.update(nms_pre=-1), r'bbox_head: test_cfg.nms_pre=-1.*--cfg-options'),
        (lambda net: setattr(net.bbox_head.bbox_coder, 'add_ctr_clamp', True), 'bbox_head.bbox_coder is a DeltaXYWHBBoxCoder'),
    ],
)
def test_what_has_no_form_in_a_file_is_named(change, message, tmp_path):
    net = detector('retina')
    change(net)
    with pytest.raises(ExportError, match=message):
        export_whole(net, EndToEnd(tmp_path / 'net.onnx', 'onnx', (64, 64)))
    assert not list(tmp_path.iterdir())


def test_a_cascade_is_refused(tmp_path):
    with pytest.raises(ExportError, match='roi_head is a CascadeRoIHead'):
        export_whole(small_model('cascade'), EndToEnd(tmp_path / 'net.onnx', 'onnx', (64, 64)))

"""Whole models deployed in bf16 against themselves in fp32: from uint8 images to boxes, masks and label maps.

CPUs without bf16 instructions emulate them, so the nets are tiny. Weights are random: which of two equally good boxes an NMS
keeps is decided by rounding, hence the wide tolerance of boxes; raw outputs are compared closely, and another net's boxes must
not pass.
"""

import numpy as np
import pytest
import torch
from mmdet.models.backbones import ResNet
from test_deploy_models import small_model
from torch import nn

from mmkerneldna.deploy import deploy
from mmkerneldna.deploy.end2end.agreement import TOLERANCES, Comparison
from mmkerneldna.deploy.end2end.check import predict
from mmkerneldna.deploy.end2end.export import generated_images
from mmkerneldna.deploy.packed_linear import PackedLinear
from mmkerneldna.deploy.probe import make_probe
from mmkerneldna.torch_internals import onednn_computes

pytestmark = pytest.mark.skipif(not onednn_computes(torch.bfloat16), reason='this CPU has no bf16 convolutions')
IMAGES = np.stack(generated_images((96, 128), 2))


@torch.no_grad()
def off(model, half):
    """The largest deviation of raw outputs, relative to their size; it takes them in fp32."""
    probe = make_probe(model, torch.randn(1, 3, 96, 64))
    outputs, expected = probe(half), probe(model)
    assert all(output.dtype == target.dtype for output, target in zip(outputs, expected))
    pairs = [(o, e) for o, e in zip(outputs, expected) if e.is_floating_point()]
    return max(((output - target).norm() / target.norm()).item() for output, target in pairs)


def matched(found, expected):
    """The share of boxes of two predictions of :data:`IMAGES` that have a partner, and the difference of their scores."""
    comparison = Comparison(TOLERANCES['bf16'])
    for pair in zip(found, expected):
        instances = [sample.pred_instances for sample in pair]
        assert all(i.bboxes.dtype == i.scores.dtype == torch.float32 for i in instances)
        dets = [(torch.cat([i.bboxes, i.scores[:, None]], 1).numpy(), i.labels.numpy()) for i in instances]
        comparison.detections(*dets, limit=1000)
    return comparison.found.matched, comparison.found.score


@pytest.mark.parametrize('name', ['faster', 'mask'])
def test_a_two_stage_detector(name):
    model = small_model(name)
    half = deploy(model, dtype=torch.bfloat16)
    assert sum(isinstance(m, PackedLinear) for m in half.roi_head.modules()) == 4
    assert off(model, half) < 0.03
    types: set[torch.dtype] = set()
    for layer in half.roi_head.bbox_roi_extractor.roi_layers:
        layer.register_forward_hook(lambda layer, args, y: types.update(x.dtype for x in (*args, y)))
    found, expected = (list(predict(net, IMAGES)) for net in (half, model))
    assert types == {torch.float32}
    share, score = matched(found, expected)
    assert share > 0.75 and score < 0.05 and len(expected[0].pred_instances) > 20
    nn.init.normal_(model.roi_head.bbox_head.fc_reg.weight, std=1.0)
    assert matched(found, list(predict(model, IMAGES)))[0] < 0.5
    if name == 'mask':
        assert all(sample.pred_instances.masks.shape[1:] == (96, 128) for sample in found)


def test_upernet():
    model = small_model('upernet')
    nn.init.normal_(model.decode_head.conv_seg.weight)
    half = deploy(model, dtype=torch.bfloat16)
    assert off(model, half) < 0.03
    maps = [torch.stack([sample.pred_sem_seg.data for sample in predict(net, IMAGES)]) for net in (half, model)]
    assert len(maps[1].unique()) > 1 and (maps[0] == maps[1]).float().mean() > 0.97


def test_deformable_convolutions_stay_in_fp32():
    """mmcv has no bf16 kernel of them for CPUs."""
    torch.manual_seed(0)
    dcn = dict(type='DCNv2', deform_groups=1, fallback_on_stride=False)
    model = ResNet(50, base_channels=4, dcn=dcn, stage_with_dcn=(False, False, False, True))
    model.eval()
    half, x = deploy(model, dtype=torch.bfloat16), torch.randn(1, 3, 64, 64)
    for feature, expected in zip(half(x), model(x)):
        assert feature.dtype == torch.bfloat16
        assert (feature.float() - expected).norm() < 0.03 * expected.norm()

"""Detectors with random weights and another backbone do the same second stage, and are left as they were."""

import re
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmkerneldna.anatomy import has_proposals
from mmkerneldna.deploy import deploy
from mmkerneldna.errors import UsageError
from mmkerneldna.launch import load_config
from mmkerneldna.measure.benchmark import build_from_config
from mmkerneldna.measure.complexity import measure_complexity
from mmkerneldna.measure.fixed_proposals import FixedProposals
from mmkerneldna.measure.workload import Workload, inference_call, tensor_call

ROOT = Path(__file__).resolve().parents[2]
SIZE, COUNT, BATCH = (64, 96), 60, 2
FIXED, FREE = (Workload(BATCH, SIZE, proposals=count) for count in (COUNT, None))
BACKBONES = ['static', 'kdna', 'dyconv4x', 'odconv4x']
STRIDES = (4, 8, 16, 32)


def detector(variant, path='shapes/faster-rcnn_r18_fpn_shapes.py'):
    return build_from_config(load_config(str(ROOT / 'configs' / path), variant=variant)).eval()


@pytest.fixture(scope='module')
def models():
    return {name: detector(name) for name in BACKBONES}


@contextmanager
def inputs_of(module):
    """What a module is called with."""
    seen = []
    hook = module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    yield seen
    hook.remove()


def rois_and_results(model, workload):
    """(n, 5) batch index and box, in the order in which they reach the RoI extractor; detections per image."""
    with inputs_of(model.roi_head.bbox_roi_extractor) as seen:
        results = [sample.pred_instances for sample in inference_call(model, workload)()]
    ((_, rois),) = seen
    return rois, results


def test_the_same_boxes_whatever_the_backbone(models):
    found = {name: rois_and_results(model, FIXED) for name, model in models.items()}
    rois, results = found['static']
    assert rois.shape == (BATCH * COUNT, 5) and rois[:, 0].long().bincount().tolist() == [COUNT] * BATCH
    assert [len(result) > 10 for result in results] == [True] * BATCH
    for name in BACKBONES[1:]:
        other_rois, other_results = found[name]
        assert torch.equal(other_rois, rois)
        for result, other in zip(results, other_results):
            assert torch.equal(other.bboxes, result.bboxes) and torch.equal(other.labels, result.labels)


def test_without_it_they_differ(models):
    """Else there is nothing to mend, and the test above says nothing."""
    counts = {name: len(rois_and_results(model, FREE)[0]) for name, model in models.items()}
    assert len(set(counts.values())) > 1


def test_proposals_are_anchors_that_do_not_overlap(models):
    rois, _ = rois_and_results(models['static'], FIXED)
    boxes = rois[:COUNT, 1:].double().numpy()
    at_level = np.array([[abs(anchors(stride) - box).max(1).min() < 1e-3 for box in boxes] for stride in STRIDES])
    assert at_level.any(0).all(), 'a box may be at two levels where the image cuts it off'
    assert at_level.any(1).all(), at_level.sum(1)
    for level in range(4):
        overlap = iou(boxes[at_level[level] & (at_level.sum(0) == 1)])
        assert (overlap[~np.eye(len(overlap), dtype=bool)] <= 0.7 + 1e-6).all()


def anchors(stride):
    """(n, 4) boxes of area (6 * stride)^2 and ratios 0.5, 1, 2 at multiples of the stride, cut off at the image."""
    xs, ys = np.meshgrid(np.arange(0, SIZE[1], stride), np.arange(0, SIZE[0], stride))
    sides = [(6 * stride / ratio**0.5 / 2, 6 * stride * ratio**0.5 / 2) for ratio in (0.5, 1, 2)]
    boxes = np.concatenate([np.stack([xs - w, ys - h, xs + w, ys + h], -1).reshape(-1, 4) for w, h in sides])
    return np.clip(boxes, 0, [SIZE[1], SIZE[0]] * 2)


def iou(boxes):
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    low, high = np.maximum(boxes[:, None, :2], boxes[None, :, :2]), np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(2)
    return shared / (area[:, None] + area - shared)


def test_every_proposal_is_one_confident_box(models):
    head = models['static'].roi_head.bbox_head
    x = torch.randn(COUNT, 64, 7, 7)
    with torch.no_grad(), FixedProposals(models['static'], COUNT):
        scores, offsets = head(x)
    probabilities = scores.softmax(1)
    assert scores.shape == (COUNT, 7) and offsets.shape == (COUNT, 24) and not offsets.any()
    best, labels = probabilities.max(1)
    assert (best > 0.8).all() and ((probabilities > 0.05).sum(1) == 1).all()
    assert (labels < 6).all() and len(labels.unique()) == 6, 'every class but the background, 6'
    assert len(best.unique()) == COUNT, 'no ties that a sort could break in two ways'


def test_all_layers_run(models):
    model = models['kdna']
    layers = {name: module for name, module in model.named_modules() if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear))}
    ran, hooks = set(), []
    for name, module in layers.items():
        hooks.append(module.register_forward_hook(lambda module, inputs, output, name=name: ran.add(name)))
    inference_call(model, FIXED)()
    for hook in hooks:
        hook.remove()
    assert ran == set(layers) and {'rpn_head.rpn_cls', 'roi_head.bbox_head.fc_reg'} < ran


def test_the_model_is_left_as_it_was(models):
    model = models['odconv4x']
    before, _ = rois_and_results(model, FREE)
    test_cfg, attributes = model.rpn_head.test_cfg, set(vars(model.rpn_head))
    inference_call(model, FIXED)()
    with pytest.raises(UsageError):
        inference_call(model, Workload(1, SIZE, proposals=5000))()
    assert model.rpn_head.test_cfg is test_cfg and test_cfg.max_per_img == 200
    assert set(vars(model.rpn_head)) == attributes
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(rois_and_results(model, FREE)[0], before)


def test_too_many_are_refused_with_the_number_there_is(models):
    with pytest.raises(UsageError, match='5000 proposals per image: an image of 64x96 has') as caught:
        inference_call(models['static'], Workload(1, SIZE, proposals=5000))()
    most = int(re.search(r'ask for (\d+) at most', str(caught.value)).group(1))
    assert len(rois_and_results(models['static'], Workload(1, SIZE, proposals=most))[0]) == most
    with pytest.raises(UsageError, match=f'ask for {most} at most'):
        inference_call(models['static'], Workload(1, SIZE, proposals=most + 1))()


@pytest.mark.parametrize('count', [0, -3])
def test_no_number_of_proposals(models, count):
    with pytest.raises(UsageError, match=f'{count} proposals per image: at least 1'):
        inference_call(models['static'], Workload(1, SIZE, proposals=count))


@pytest.mark.parametrize('part, name', [('rpn_head', 'RPNHead'), ('roi_head.bbox_head', 'Shared2FCBBoxHead')])
def test_heads_of_another_kind_are_refused(models, part, name, monkeypatch):
    head = models['static'].get_submodule(part)
    forward = head.forward
    monkeypatch.setattr(head, 'forward', lambda x: (*forward(x), torch.zeros(1)))
    with pytest.raises(UsageError, match=f'of a {name} cannot be fixed'):
        inference_call(models['static'], FIXED)()


def test_deployed_models_get_the_same(models):
    rois, results = rois_and_results(models['kdna'], FIXED)
    deployed_rois, deployed_results = rois_and_results(deploy(models['kdna']), FIXED)
    assert torch.equal(deployed_rois, rois)
    for deployed, result in zip(deployed_results, results, strict=True):
        assert torch.equal(deployed.bboxes, result.bboxes)


def test_levels_take_turns_in_what_the_rpn_would_return(models):
    """In shape, dtype and memory layout of the real outputs: these decide what the post-processing costs."""
    rpn = models['static'].rpn_head
    features = [torch.randn(BATCH, 64, 2**k, 3 * 2**k).to(memory_format=torch.channels_last) for k in (4, 3, 2, 1)]
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        real = rpn(features)
    with torch.no_grad(), FixedProposals(models['static'], COUNT):
        exact = rpn(features)
        with torch.autocast('cpu', torch.bfloat16):
            made = rpn(features)
    for real_maps, made_maps in zip(real, made):
        for output, replaced in zip(real_maps, made_maps):
            assert (replaced.shape, replaced.dtype) == (output.shape, torch.bfloat16)
            assert replaced[0].stride() == output[0].stride()
    assert not any(offsets.any() for offsets in made[1])
    for scores in exact[0]:
        first, second = scores.flatten(1).sort(descending=True)[0]
        torch.testing.assert_close(first, 4 - torch.arange(len(first)) / 250)
        assert torch.equal(first, second) and not torch.equal(scores[0].flatten(), first)


def test_complexity_counts_them(models):
    few, many = (measure_complexity(models['static'], SIZE, count).gmacs for count in (20, COUNT))
    per_box = 64 * 7 * 7 * 256 + 256 * 256 + 256 * 7 + 256 * 6 * 4
    assert round((many - few) * 1e9) == (COUNT - 20) * per_box


def test_masks():
    heads = {}
    for name in BACKBONES[:2]:
        model = detector(name, 'mask_rcnn/mask-rcnn_r18_fpn_1x_coco.py')
        with inputs_of(model.roi_head.mask_roi_extractor) as seen, inputs_of(model.roi_head.mask_head) as features:
            (result,) = inference_call(model, Workload(1, SIZE, proposals=COUNT))()
        ((_, boxes),) = seen
        heads[name] = boxes
        assert len(features[0][0]) == len(boxes) == len(result.pred_instances) > 20
        assert result.pred_instances.masks.shape == (len(boxes), *SIZE)
    assert torch.equal(*heads.values())


def test_models_without_proposals_are_not_concerned():
    retina = build_from_config(Config.fromfile(ROOT / 'configs/retinanet/retinanet_r18_fpn_1x_coco.py')).eval()
    assert not has_proposals(retina) and not has_proposals(torch.nn.Conv2d(3, 3, 1))
    assert FIXED.proposals_of(retina) is None
    free, fixed = (tensor_call(retina, workload)() for workload in (FREE, FIXED))
    assert all(torch.equal(a, b) for a, b in zip(free[0], fixed[0]))

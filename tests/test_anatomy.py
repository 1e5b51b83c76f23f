"""What a model is made of, on upstream's own models and inside wrappers."""

import pytest
import torch
from mmengine.hub import get_config
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmkerneldna.anatomy import augments, backbone_of, has_proposals, heads_of, is_whole, rewrap, task_of, trained_model, unwrap

CONFIGS = {
    'two stages': ('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', 'detection', (1, 1, 0)),
    'masks': ('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', 'detection', (1, 1, 1)),
    'cascade': ('mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py', 'detection', (1, 3, 3)),
    'one stage': ('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', 'detection', (1, 0, 0)),
    'segmenter': ('mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py', 'segmentation', (1, 0, 0)),
    'cascaded segmenter': ('mmseg::ocrnet/ocrnet_hr18_4xb4-80k_ade20k-512x512.py', 'segmentation', (2, 0, 0)),
}


def build(cfg):
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device('meta'):
        return MODELS.build(cfg.model)


@pytest.mark.parametrize('name', CONFIGS)
def test_parts_of_upstream_models(name):
    path, task, counts = CONFIGS[name]
    cfg = get_config(path)
    cfg.model.pop('pretrained', None)
    model = build(cfg)
    heads = heads_of(model)
    assert (task_of(model), is_whole(model)) == (task, True)
    assert (len(heads.dense), len(heads.box), len(heads.mask)) == counts
    assert not any(isinstance(head, nn.ModuleList) for head in (*heads.dense, *heads.box, *heads.mask))
    assert has_proposals(model) == has_proposals(cfg.model) == (counts[1] > 0)
    assert backbone_of(model) is model.backbone
    assert (task_of(model.backbone), is_whole(model.backbone), backbone_of(model.backbone)) == (
        'backbone',
        False,
        model.backbone,
    )
    assert heads_of(model.backbone).dense == ()


def distributed(model):
    wrapper = MMDistributedDataParallel.__new__(MMDistributedDataParallel)
    nn.Module.__init__(wrapper)
    wrapper.module = model
    return wrapper


def augmented(model):
    with DefaultScope.overwrite_default_scope('mmseg'):
        return MODELS.build(dict(type='SegTTAModel', module=model))


def model_with_test_step():
    model = nn.Conv2d(3, 3, 1)
    model.test_step = None
    return model


def test_wrappers():
    model, other = model_with_test_step(), model_with_test_step()
    for wrapper in (model, distributed(model), augmented(model), distributed(augmented(model))):
        assert unwrap(wrapper) is model
        renewed = rewrap(wrapper, other)
        assert unwrap(renewed) is other and unwrap(wrapper) is model, 'the original keeps its model'
        assert augments(renewed) == augments(wrapper) and not isinstance(renewed, MMDistributedDataParallel)
    assert augments(distributed(augmented(model))) and not augments(distributed(model))


def test_the_student_is_what_a_distillation_trains():
    plain = dict(type='FCN', backbone=dict(type='ResNet'))
    teacher = dict(cfg=dict(model=dict(backbone={})), checkpoint='a.pth')
    assert trained_model(plain) is plain
    assert trained_model(dict(type='Distilled', teacher=teacher, student=plain)) is plain

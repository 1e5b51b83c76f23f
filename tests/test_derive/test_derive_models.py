"""Children in any part of detectors and segmenters, and in other backbones."""

import pytest
import torch
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, DefaultScope

from mmkerneldna.derive import Reconstruction, derive
from mmkerneldna.sharing import share_kernels
from tests.helpers import randomise

register_all_modules(init_default_scope=False)
BACKBONE = dict(type='ResNet', depth=18, base_channels=8, stem_channels=8, norm_cfg=dict(type='BN'))
FPN = dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=8, num_outs=4)
ANCHORS = dict(type='AnchorGenerator', scales=[8], ratios=[1.0], strides=[4, 8, 16, 32])
CODER = dict(type='DeltaXYWHBBoxCoder')
ROI = dict(type='SingleRoIExtractor', out_channels=8, featmap_strides=[4, 8, 16, 32])
TEST = dict(nms_pre=10, min_bbox_size=0, score_thr=0.1, nms=dict(type='nms', iou_threshold=0.5), max_per_img=5)
RETINA = dict(
    type='RetinaNet',
    backbone=BACKBONE,
    neck=FPN,
    bbox_head=dict(
        type='RetinaHead',
        num_classes=3,
        in_channels=8,
        feat_channels=8,
        stacked_convs=3,
        anchor_generator=ANCHORS,
        bbox_coder=CODER,
    ),
    test_cfg=TEST,
)
MASK = dict(
    type='MaskRCNN',
    backbone=BACKBONE,
    neck=FPN,
    train_cfg=None,
    rpn_head=dict(type='RPNHead', in_channels=8, feat_channels=8, anchor_generator=ANCHORS, bbox_coder=CODER),
    roi_head=dict(
        type='StandardRoIHead',
        bbox_roi_extractor=dict(ROI, roi_layer=dict(type='RoIAlign', output_size=7)),
        bbox_head=dict(
            type='Shared2FCBBoxHead', in_channels=8, fc_out_channels=8, roi_feat_size=7, num_classes=3, bbox_coder=CODER
        ),
        mask_roi_extractor=dict(ROI, roi_layer=dict(type='RoIAlign', output_size=7)),
        mask_head=dict(type='FCNMaskHead', num_convs=3, in_channels=8, conv_out_channels=8, num_classes=3),
    ),
    test_cfg=dict(rpn=dict(TEST, max_per_img=10), rcnn=dict(TEST, mask_thr_binary=0.5)),
)
FCN = dict(type='FCNHead', in_channels=64, in_index=3, channels=8, num_convs=3, num_classes=3, norm_cfg=dict(type='BN'))
SEGMENTER = dict(
    type='mmseg.EncoderDecoder',
    backbone=dict(BACKBONE, norm_cfg=dict(type='BN')),
    decode_head=FCN,
    auxiliary_head=dict(FCN, in_channels=32, in_index=2),
    test_cfg=dict(mode='whole'),
)

CASES = {
    'one stage': (
        RETINA,
        'mmdet',
        {'neck.fpn_convs.0.conv': 'neck.fpn_convs.1.conv', 'bbox_head.cls_convs.0.conv': 'bbox_head.cls_convs.1.conv'},
    ),
    'two stages': (
        MASK,
        'mmdet',
        {
            'backbone.layer4.1.conv1': 'backbone.layer4.1.conv2',
            'roi_head.mask_head.convs.0.conv': 'roi_head.mask_head.convs.1.conv',
        },
    ),
    'neck': (RETINA, 'mmdet', {'neck.fpn_convs.0.conv': 'neck.fpn_convs.1.conv'}),
    'segmenter': (
        SEGMENTER,
        'mmseg',
        {'decode_head.convs.1.conv': 'decode_head.convs.2.conv', 'auxiliary_head.convs.1.conv': 'auxiliary_head.convs.2.conv'},
    ),
}


def build(cfg, scope):
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(ConfigDict(cfg))
    torch.manual_seed(0)
    randomise(model)
    model.eval()
    return model


@pytest.mark.parametrize('case', CASES)
def test_children_in_any_part_are_reached_and_reconstructed(case):
    cfg, scope, plan = CASES[case]
    source, target = build(cfg, scope), share_kernels(build(cfg, scope), plan)
    torch.manual_seed(1)
    batches = [torch.randn(2, 3, 64, 64) for _ in range(2)]
    start = derive(target, source, batches)
    report = derive(target, source, batches, steps=12, reconstruction=Reconstruction(lr=3e-3, shares=(1, 0, 0)))
    assert {row.child for row in report.of_kind('fitted')} == set(plan)
    assert all(row.output_error is not None and row.output_error > 0 for row in report.children)
    assert sum(report.blocks.values()) < sum(start.blocks.values())
    assert all(level.error == level.error for level in report.levels) and len(report.levels) >= 2


OTHERS = {
    'RegNet': dict(type='RegNet', arch='regnetx_400mf', out_indices=(2, 3)),
    'CSPNeXt': dict(type='CSPNeXt', deepen_factor=0.4, widen_factor=0.125, out_indices=(3, 4)),
    'CSPDarknet': dict(type='CSPDarknet', deepen_factor=0.67, widen_factor=0.125, out_indices=(3, 4)),
    'HRNet': dict(
        type='HRNet',
        extra=dict(
            stage1=dict(num_modules=1, num_branches=1, block='BOTTLENECK', num_blocks=(1,), num_channels=(8,)),
            stage2=dict(num_modules=1, num_branches=2, block='BASIC', num_blocks=(2, 2), num_channels=(8, 16)),
            stage3=dict(num_modules=1, num_branches=3, block='BASIC', num_blocks=(2, 2, 2), num_channels=(8, 16, 32)),
            stage4=dict(num_modules=1, num_branches=4, block='BASIC', num_blocks=(2, 2, 2, 2), num_channels=(8, 16, 32, 64)),
        ),
    ),
}


@pytest.mark.parametrize('name', OTHERS)
def test_other_backbones(name):
    source, target = (build(dict(OTHERS[name]), 'mmdet') for _ in range(2))
    share_kernels(target, dict(type='auto', min_kernel_params=100, kernel_sizes=(1, 3), reduction=8))
    torch.manual_seed(1)
    batches = [torch.randn(4, 3, 64, 64) for _ in range(2)]
    weights_only = derive(target, source)
    report = derive(target, source, batches, steps=4)
    assert len(report.children) == len(weights_only.children) > 1
    assert all(torch.isfinite(v).all() for v in target.state_dict().values())
    assert all(level.error < 3 for level in report.levels) and len(report.blocks) > 0

"""RetinaNet with the stride-4 level computed where platelets may be, ResNet-18 of half the width, light head, on BCCD.
python tools/train.py configs/bccd/retinanet_sparse-query-r18_fpn_12e_bccd.py
python tools/sweep.py configs/bccd/retinanet_sparse-query-r18_fpn_12e_bccd.py CHECKPOINT --keep 1 .5 .25 .1
"""

_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    '../_base_/datasets/bccd_detection.py',
    '../_base_/schedules/scratch_12e.py',
    'mmdet::_base_/default_runtime.py',
]

# Platelets are 27 to 65 pixels wide, red cells 75 to 130, white ones 100 to 285: one octave of anchors each, and one above.
model = dict(
    backbone=dict(depth=18, base_channels=32, frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64, start_level=0, num_outs=4),
    bbox_head=dict(
        type='SparseQueryRetinaHead',
        num_classes=3,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        norm_cfg=dict(type='BN'),
        anchor_generator=dict(octave_base_scale=8, scales_per_octave=2, ratios=[1.0], strides=[4, 8, 16, 32]),
        query=dict(tile=16, small=64.0),
    ),
)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=2))

"""RetinaNet with the stride-4 level computed where it is asked for, narrow ResNet-18, from scratch on small generated shapes.
python tools/make_shapes.py --scale 0.25 --data-root data/shapes_small
python tools/train.py configs/shapes/retinanet_sparse-query-r18_fpn_shapes.py
"""

_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    '../_base_/datasets/shapes_detection.py',
    'mmdet::_base_/default_runtime.py',
]

data_root = 'data/shapes_small/'
size = dict(type='Resize', scale=(192, 192), keep_ratio=True)
train_pipeline = [*_base_.train_pipeline[:2], size, *_base_.train_pipeline[3:]]
test_pipeline = [*_base_.test_pipeline[:1], size, *_base_.test_pipeline[2:]]
train_dataloader = dict(dataset=dict(data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_validation.json')
test_evaluator = val_evaluator

max_epochs = 6
model = dict(
    backbone=dict(depth=18, base_channels=16, frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=32, start_level=0, num_outs=4),
    bbox_head=dict(
        type='SparseQueryRetinaHead',
        num_classes=6,
        in_channels=32,
        feat_channels=32,
        stacked_convs=2,
        norm_cfg=dict(type='BN'),
        anchor_generator=dict(octave_base_scale=3, scales_per_octave=2, ratios=[1.0], strides=[4, 8, 16, 32]),
        query=dict(tile=8, small=32.0),
    ),
)
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=max_epochs)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05), clip_grad=dict(max_norm=10))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=40),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=max_epochs, T_max=max_epochs, convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=1, max_keep_ckpts=1))
custom_hooks = [dict(type='CostHook')]

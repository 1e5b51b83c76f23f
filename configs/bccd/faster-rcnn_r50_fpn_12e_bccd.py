"""Faster R-CNN, static ResNet-50, from scratch on BCCD (3 classes, 640x480); minutes on one GPU.
python tools/train.py configs/bccd/faster-rcnn_r50_fpn_12e_bccd.py
"""

_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    '../_base_/datasets/bccd_detection.py',
    '../_base_/schedules/scratch_12e.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(backbone=dict(frozen_stages=-1, norm_eval=False, init_cfg=None), roi_head=dict(bbox_head=dict(num_classes=3)))
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=2))

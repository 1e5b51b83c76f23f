"""Faster R-CNN, static ResNet-18, from scratch on BCCD (3 classes, 640x480); minutes on one GPU.
python tools/train.py configs/bccd/faster-rcnn_r18_fpn_12e_bccd.py
"""

_base_ = './faster-rcnn_r50_fpn_12e_bccd.py'
model = dict(backbone=dict(depth=18), neck=dict(in_channels=[64, 128, 256, 512]))

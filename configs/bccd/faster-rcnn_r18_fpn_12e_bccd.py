"""Faster R-CNN, static ResNet-18, from scratch on BCCD (3 classes, 640x480).

    python tools/train.py configs/bccd/faster-rcnn_r18_fpn_12e_bccd.py --cfg-options data_root=/path/to/bccd/

Cost class: minutes on one GPU, an hour or more on a CPU.
"""
_base_ = './faster-rcnn_r50_fpn_12e_bccd.py'

model = dict(backbone=dict(depth=18), neck=dict(in_channels=[64, 128, 256, 512]))

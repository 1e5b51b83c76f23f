"""Faster R-CNN, KernelDNA ResNet-50, otherwise faster-rcnn_r50_fpn_12e_bccd.py; minutes on one GPU.
python tools/train.py configs/bccd/faster-rcnn_kdna-r50_fpn_12e_bccd.py
"""

_base_ = './faster-rcnn_r50_fpn_12e_bccd.py'
model = dict(backbone=dict(type='KDNAResNet'))

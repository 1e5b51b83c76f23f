"""Faster R-CNN, KernelDNA ResNet-18, otherwise faster-rcnn_r18_fpn_12e_bccd.py; minutes on one GPU.
python tools/train.py configs/bccd/faster-rcnn_kdna-r18_fpn_12e_bccd.py
"""

_base_ = './faster-rcnn_r18_fpn_12e_bccd.py'
model = dict(backbone=dict(type='KDNAResNet'))

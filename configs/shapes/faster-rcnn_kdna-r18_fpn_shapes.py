"""Faster R-CNN, KernelDNA ResNet-18, otherwise faster-rcnn_r18_fpn_shapes.py.
python tools/train.py configs/shapes/faster-rcnn_kdna-r18_fpn_shapes.py
"""

_base_ = './faster-rcnn_r18_fpn_shapes.py'
model = dict(backbone=dict(type='KDNAResNet'))

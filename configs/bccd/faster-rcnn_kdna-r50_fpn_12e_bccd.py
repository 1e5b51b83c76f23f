"""Faster R-CNN, KernelDNA ResNet-50, otherwise faster-rcnn_r50_fpn_12e_bccd.py.

    python tools/train.py configs/bccd/faster-rcnn_kdna-r50_fpn_12e_bccd.py --cfg-options data_root=/path/to/bccd/

Cost class: as its static twin.
"""
_base_ = './faster-rcnn_r50_fpn_12e_bccd.py'

model = dict(backbone=dict(type='KDNAResNet'))

"""Faster R-CNN, KernelDNA ResNet-18, otherwise faster-rcnn_r18_fpn_12e_bccd.py.

    python tools/train.py configs/bccd/faster-rcnn_kdna-r18_fpn_12e_bccd.py --cfg-options data_root=/path/to/bccd/

Cost class: as its static twin.
"""
_base_ = './faster-rcnn_r18_fpn_12e_bccd.py'

model = dict(backbone=dict(type='KDNAResNet'))

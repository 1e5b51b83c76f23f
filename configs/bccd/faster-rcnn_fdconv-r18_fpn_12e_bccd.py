"""Faster R-CNN, BCCD, ResNet-18: frequency dynamic convolution (Chen et al., 2025).

    python tools/train.py configs/bccd/faster-rcnn_fdconv-r18_fpn_12e_bccd.py

From scratch. Costs more per step than the static net; tools/benchmark.py measures how much.
"""
_base_ = './faster-rcnn_r18_fpn_12e_bccd.py'
custom_imports = dict(imports=['mmkerneldna'], allow_failed_imports=False)
conv = dict(type='FDConv2d')
model = dict(
    backbone=dict(_delete_=True, type='DynamicConvs', conv=conv, module=_base_.model.backbone))

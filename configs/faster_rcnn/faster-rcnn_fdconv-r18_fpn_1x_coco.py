"""Faster R-CNN, COCO, 1x, ResNet-18: frequency dynamic convolution (Chen et al., 2025).

Nothing of the backbone is frozen: its new layers start from random attention.

    bash tools/dist_train.sh configs/faster_rcnn/faster-rcnn_fdconv-r18_fpn_1x_coco.py 8

Cost: 12 epochs of 117 k images at 1333x800, 16 images a step, and more per step than the static net;
tools/benchmark.py measures how much.
"""
_base_ = './faster-rcnn_r18_fpn_1x_coco.py'
custom_imports = dict(imports=['mmkerneldna'], allow_failed_imports=False)
conv = dict(type='FDConv2d')
model = dict(
    backbone=dict(_delete_=True, type='DynamicConvs', conv=conv, module=dict(_base_.model.backbone, frozen_stages=-1)))

"""Mask R-CNN, COCO, 1x, ResNet-50: dynamic convolution, 4 kernels (Chen et al., 2020).

Nothing of the backbone is frozen: its new layers start from random attention.

    bash tools/dist_train.sh configs/mask_rcnn/mask-rcnn_dyconv4x-r50_fpn_1x_coco.py 8

Cost: 12 epochs of 117 k images at 1333x800, 16 images a step, and more per step than the static net;
tools/benchmark.py measures how much.
"""
_base_ = './mask-rcnn_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['mmkerneldna'], allow_failed_imports=False)
conv = dict(type='DyConv2d', num_experts=4)
model = dict(
    backbone=dict(_delete_=True, type='DynamicConvs', conv=conv, module=dict(_base_.model.backbone, frozen_stages=-1)))
custom_hooks = [
    *_base_.get('custom_hooks', []),
    dict(type='TemperatureHook', start=30, end=1, length=4)
]

"""Mask R-CNN, COCO, 1x, ResNet-18: KernelWarehouse, budget 1x (Li et al., 2024).

Nothing of the backbone is frozen: its new layers start from random attention.

    bash tools/dist_train.sh configs/mask_rcnn/mask-rcnn_kw1x-r18_fpn_1x_coco.py 8

Cost: 12 epochs of 117 k images at 1333x800, 16 images a step, and more per step than the static net;
tools/benchmark.py measures how much.
"""
_base_ = './mask-rcnn_r18_fpn_1x_coco.py'
custom_imports = dict(imports=['mmkerneldna'], allow_failed_imports=False)
conv = dict(type='KWConv2d', budget=1)
model = dict(
    backbone=dict(_delete_=True, type='DynamicConvs', conv=conv, module=dict(_base_.model.backbone, frozen_stages=-1)))
custom_hooks = [
    *_base_.get('custom_hooks', []),
    dict(type='TemperatureHook', start=1, end=0, length=4)
]

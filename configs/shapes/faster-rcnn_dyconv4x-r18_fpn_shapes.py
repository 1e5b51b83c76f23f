"""Faster R-CNN, shapes, ResNet-18: dynamic convolution, 4 kernels (Chen et al., 2020).

    python tools/train.py configs/shapes/faster-rcnn_dyconv4x-r18_fpn_shapes.py

From scratch. Costs more per step than the static net; tools/benchmark.py measures how much.
"""
_base_ = './faster-rcnn_r18_fpn_shapes.py'
custom_imports = dict(imports=['mmkerneldna'], allow_failed_imports=False)
conv = dict(type='DyConv2d', num_experts=4)
model = dict(
    backbone=dict(_delete_=True, type='DynamicConvs', conv=conv, module=_base_.model.backbone))
custom_hooks = [
    *_base_.get('custom_hooks', []),
    dict(type='TemperatureHook', start=30, end=1, length=3)
]

"""Faster R-CNN, BCCD, ResNet-18: KernelWarehouse, budget 1x (Li et al., 2024).

    python tools/train.py configs/bccd/faster-rcnn_kw1x-r18_fpn_12e_bccd.py

From scratch. Costs more per step than the static net; tools/benchmark.py measures how much.
"""
_base_ = './faster-rcnn_r18_fpn_12e_bccd.py'
custom_imports = dict(imports=['mmkerneldna'], allow_failed_imports=False)
conv = dict(type='KWConv2d', budget=1)
model = dict(
    backbone=dict(_delete_=True, type='DynamicConvs', conv=conv, module=_base_.model.backbone))
custom_hooks = [
    *_base_.get('custom_hooks', []),
    dict(type='TemperatureHook', start=1, end=0, length=3)
]

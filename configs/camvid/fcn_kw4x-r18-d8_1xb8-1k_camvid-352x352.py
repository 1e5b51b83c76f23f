"""FCN, CamVid, ResNet-18: KernelWarehouse, budget 4x (Li et al., 2024).

    python tools/train.py configs/camvid/fcn_kw4x-r18-d8_1xb8-1k_camvid-352x352.py

From scratch. Costs more per step than the static net; tools/benchmark.py measures how much.
"""
_base_ = './fcn_r18-d8_1xb8-1k_camvid-352x352.py'
custom_imports = dict(imports=['mmkerneldna'], allow_failed_imports=False)
conv = dict(type='KWConv2d', budget=4)
model = dict(
    backbone=dict(_delete_=True, type='DynamicConvs', conv=conv, module=_base_.model.backbone))
custom_hooks = [
    *_base_.get('custom_hooks', []),
    dict(type='TemperatureHook', start=1, end=0, length=250, by_epoch=False)
]

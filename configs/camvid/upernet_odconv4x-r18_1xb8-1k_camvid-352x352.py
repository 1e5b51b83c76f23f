"""UPerNet, CamVid, ResNet-18: ODConv, 4 kernels (Li et al., 2022).

    python tools/train.py configs/camvid/upernet_odconv4x-r18_1xb8-1k_camvid-352x352.py

From scratch. Costs more per step than the static net; tools/benchmark.py measures how much.
"""
_base_ = './upernet_r18_1xb8-1k_camvid-352x352.py'
custom_imports = dict(imports=['mmkerneldna'], allow_failed_imports=False)
conv = dict(type='ODConv2d', num_experts=4)
model = dict(
    backbone=dict(_delete_=True, type='DynamicConvs', conv=conv, module=_base_.model.backbone))
custom_hooks = [
    *_base_.get('custom_hooks', []),
    dict(type='TemperatureHook', start=30, end=1, length=250, by_epoch=False)
]

"""UPerNet, CamVid, ResNet-18: KernelDNA's input gate on static kernels.

    python tools/train.py configs/camvid/upernet_se-r18_1xb8-1k_camvid-352x352.py

From scratch. Costs more per step than the static net; tools/benchmark.py measures how much.
"""
_base_ = './upernet_r18_1xb8-1k_camvid-352x352.py'
custom_imports = dict(imports=['mmkerneldna'], allow_failed_imports=False)
conv = dict(type='SEConv2d')
model = dict(
    backbone=dict(_delete_=True, type='DynamicConvs', conv=conv, module=_base_.model.backbone))

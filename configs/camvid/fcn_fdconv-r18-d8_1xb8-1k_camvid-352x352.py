"""FCN, CamVid, ResNet-18: frequency dynamic convolution (Chen et al., 2025).

    python tools/train.py configs/camvid/fcn_fdconv-r18-d8_1xb8-1k_camvid-352x352.py

From scratch. Costs more per step than the static net; tools/benchmark.py measures how much.
"""
_base_ = './fcn_r18-d8_1xb8-1k_camvid-352x352.py'
custom_imports = dict(imports=['mmkerneldna'], allow_failed_imports=False)
conv = dict(type='FDConv2d')
model = dict(
    backbone=dict(_delete_=True, type='DynamicConvs', conv=conv, module=_base_.model.backbone))

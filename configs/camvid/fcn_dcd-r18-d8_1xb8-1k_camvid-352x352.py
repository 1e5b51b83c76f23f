"""FCN, CamVid, ResNet-18: dynamic channel fusion (Li et al., 2021).

    python tools/train.py configs/camvid/fcn_dcd-r18-d8_1xb8-1k_camvid-352x352.py

From scratch. Costs more per step than the static net; tools/benchmark.py measures how much.
"""
_base_ = './fcn_r18-d8_1xb8-1k_camvid-352x352.py'
custom_imports = dict(imports=['mmkerneldna'], allow_failed_imports=False)
conv = dict(type='DCDConv2d', pool_size=2)
model = dict(
    backbone=dict(_delete_=True, type='DynamicConvs', conv=conv, module=_base_.model.backbone))

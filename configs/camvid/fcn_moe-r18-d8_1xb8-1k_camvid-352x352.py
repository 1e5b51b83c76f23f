"""FCN, CamVid, ResNet-18: one of 4 expert kernels per image.

    python tools/train.py configs/camvid/fcn_moe-r18-d8_1xb8-1k_camvid-352x352.py

From scratch. Costs more per step than the static net; tools/benchmark.py measures how much.
"""
_base_ = './fcn_r18-d8_1xb8-1k_camvid-352x352.py'
custom_imports = dict(imports=['mmkerneldna'], allow_failed_imports=False)
conv = dict(type='MoEConv2d', num_experts=4, top_k=1)
model = dict(
    backbone=dict(_delete_=True, type='DynamicConvs', conv=conv, module=_base_.model.backbone))
custom_hooks = [*_base_.get('custom_hooks', []), dict(type='MoELossHook')]

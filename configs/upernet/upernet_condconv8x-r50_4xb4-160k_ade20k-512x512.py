"""UPerNet, ADE20K, 160 k iterations, ResNet-50: CondConv, 8 experts (Yang et al., 2019).

    bash tools/dist_train.sh configs/upernet/upernet_condconv8x-r50_4xb4-160k_ade20k-512x512.py 4

Cost: 160 k steps of 16 crops of 512x512, and more per step than the static net; tools/benchmark.py measures how
much.
"""
_base_ = './upernet_r50_4xb4-160k_ade20k-512x512.py'
custom_imports = dict(imports=['mmkerneldna'], allow_failed_imports=False)
conv = dict(type='CondConv2d', num_experts=8)
model = dict(
    backbone=dict(_delete_=True, type='DynamicConvs', conv=conv, module=_base_.model.backbone))

"""UPerNet, ADE20K, 160 k iterations, MobileNetV2 1.0: dynamic channel fusion (Li et al., 2021).

    bash tools/dist_train.sh configs/upernet/upernet_dcd-mobilenet-v2_4xb4-160k_ade20k-512x512.py 4

Cost: 160 k steps of 16 crops of 512x512, and more per step than the static net; tools/benchmark.py measures how
much.
"""
_base_ = './upernet_mobilenet-v2_4xb4-160k_ade20k-512x512.py'
custom_imports = dict(imports=['mmkerneldna'], allow_failed_imports=False)
conv = dict(type='DCDConv2d', form='mobilenet')
model = dict(
    backbone=dict(_delete_=True, type='DynamicConvs', conv=conv, module=_base_.model.backbone))

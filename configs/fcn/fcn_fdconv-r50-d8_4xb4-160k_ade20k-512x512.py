"""FCN, ADE20K, 160 k iterations, ResNet-50: frequency dynamic convolution (Chen et al., 2025).

    bash tools/dist_train.sh configs/fcn/fcn_fdconv-r50-d8_4xb4-160k_ade20k-512x512.py 4

Cost: 160 k steps of 16 crops of 512x512, and more per step than the static net; tools/benchmark.py measures how
much.
"""
_base_ = './fcn_r50-d8_4xb4-160k_ade20k-512x512.py'
custom_imports = dict(imports=['mmkerneldna'], allow_failed_imports=False)
conv = dict(type='FDConv2d')
model = dict(
    backbone=dict(_delete_=True, type='DynamicConvs', conv=conv, module=_base_.model.backbone))

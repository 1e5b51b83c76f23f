"""UPerNet, ADE20K, 160 k iterations, MobileNetV2 1.0: frequency dynamic convolution (Chen et al., 2025).

The paper has no MobileNetV2; here its 1x1 convs are swapped.

    bash tools/dist_train.sh configs/upernet/upernet_fdconv-mobilenet-v2_4xb4-160k_ade20k-512x512.py 4

Cost: 160 k steps of 16 crops of 512x512, and more per step than the static net; tools/benchmark.py measures how
much.
"""
_base_ = './upernet_mobilenet-v2_4xb4-160k_ade20k-512x512.py'
custom_imports = dict(imports=['mmkerneldna'], allow_failed_imports=False)
conv = dict(type='FDConv2d')
model = dict(
    backbone=dict(_delete_=True, type='DynamicConvs', conv=conv,
                  include=[r're:layer[2-7]\.\d+\.conv\.[02]\.conv'], module=_base_.model.backbone))

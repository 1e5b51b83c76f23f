"""DeepLabV3+, KernelDNA MobileNetV2 1.0, output stride 8, ADE20K, 160 k iterations.

The backbone shares kernels (1x1 convs of the inner blocks of the 32- to 160-channel stages borrow their kernels)
and starts from upstream's ImageNet weights of the static net, derived for it when the training starts:

    bash tools/dist_train.sh configs/deeplabv3plus/deeplabv3plus_kdna-mobilenet-v2-d8_4xb4-160k_ade20k-512x512.py 4

From scratch:

    bash tools/dist_train.sh configs/deeplabv3plus/deeplabv3plus_kdna-mobilenet-v2-d8_4xb4-160k_ade20k-512x512.py 4 \
        --cfg-options model.pretrained=None

Cost: 160 k steps of 16 crops of 512x512: expect about a day on 4 GPUs. Gives mIoU.
"""
_base_ = './deeplabv3plus_mobilenet-v2-d8_4xb4-160k_ade20k-512x512.py'
custom_imports = dict(imports=['mmkerneldna'], allow_failed_imports=False)
model = dict(backbone=dict(type='KDNAMobileNetV2'))

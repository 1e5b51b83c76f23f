"""PSPNet, static ResNet-18, output stride 8, ADE20K, 160 k iterations; about a day on 4 GPUs.
bash tools/dist_train.sh configs/pspnet/pspnet_r18-d8_4xb4-160k_ade20k-512x512.py 4
"""

_base_ = 'mmseg::pspnet/pspnet_r50-d8_4xb4-160k_ade20k-512x512.py'
model = dict(
    pretrained='open-mmlab://resnet18_v1c',
    backbone=dict(depth=18),
    decode_head=dict(in_channels=512, channels=128),
    auxiliary_head=dict(in_channels=256, channels=64),
)

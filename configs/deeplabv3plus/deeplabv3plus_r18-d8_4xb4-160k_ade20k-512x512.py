"""DeepLabV3+, static ResNet-18, output stride 8, ADE20K, 160 k iterations; about a day on 4 GPUs.
bash tools/dist_train.sh configs/deeplabv3plus/deeplabv3plus_r18-d8_4xb4-160k_ade20k-512x512.py 4
"""

_base_ = 'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-160k_ade20k-512x512.py'
model = dict(
    pretrained='open-mmlab://resnet18_v1c',
    backbone=dict(depth=18),
    decode_head=dict(c1_in_channels=64, c1_channels=12, in_channels=512, channels=128),
    auxiliary_head=dict(in_channels=256, channels=64),
)

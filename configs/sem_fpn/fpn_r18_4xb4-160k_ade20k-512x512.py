"""Semantic FPN, static ResNet-18, ADE20K, 160 k iterations; about a day on 4 GPUs.
bash tools/dist_train.sh configs/sem_fpn/fpn_r18_4xb4-160k_ade20k-512x512.py 4
"""

_base_ = 'mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py'
model = dict(pretrained='open-mmlab://resnet18_v1c', backbone=dict(depth=18), neck=dict(in_channels=[64, 128, 256, 512]))

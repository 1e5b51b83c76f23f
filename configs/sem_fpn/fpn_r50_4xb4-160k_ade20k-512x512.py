"""Semantic FPN, static ResNet-50, ADE20K, 160 k iterations; about a day on 4 GPUs.
bash tools/dist_train.sh configs/sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py 4
"""

_base_ = 'mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py'

"""UPerNet, static MobileNetV2 1.0, ADE20K, 160 k iterations; about a day on 4 GPUs.
bash tools/dist_train.sh configs/upernet/upernet_mobilenet-v2_4xb4-160k_ade20k-512x512.py 4
"""

_base_ = 'mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py'
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    pretrained='mmcls://mobilenet_v2',
    backbone=dict(
        _delete_=True, type='MobileNetV2', out_indices=(1, 2, 4, 6), norm_cfg=dict(type='SyncBN', requires_grad=True)
    ),
    decode_head=dict(in_channels=[24, 32, 96, 320]),
    auxiliary_head=dict(in_channels=96),
)

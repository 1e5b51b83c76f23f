"""Mask R-CNN, static MobileNetV2 1.0, FPN, COCO, 1x; about half a day on 8 GPUs.
bash tools/dist_train.sh configs/mask_rcnn/mask-rcnn_mobilenet-v2_fpn_1x_coco.py 8
"""

_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='MobileNetV2',
        out_indices=(1, 2, 4, 6),
        init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://mmdet/mobilenet_v2'),
    ),
    neck=dict(in_channels=[24, 32, 96, 320]),
)

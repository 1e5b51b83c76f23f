"""Faster R-CNN, static MobileNetV2 1.0, FPN, COCO, 1x schedule.

The baseline. ImageNet weights are fetched from their public address when training starts.

    bash tools/dist_train.sh configs/faster_rcnn/faster-rcnn_mobilenet-v2_fpn_1x_coco.py 8

Cost: 12 epochs of 117 k images at 1333x800, 16 images a step: expect about half a day on 8 GPUs.
Gives box AP.
"""
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='MobileNetV2',
        out_indices=(1, 2, 4, 6),
        init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://mmdet/mobilenet_v2')),
    neck=dict(in_channels=[24, 32, 96, 320]))

"""Mask R-CNN, static ResNet-18, FPN, COCO, 1x; about half a day on 8 GPUs.
bash tools/dist_train.sh configs/mask_rcnn/mask-rcnn_r18_fpn_1x_coco.py 8
"""

_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
model = dict(
    backbone=dict(depth=18, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18')),
    neck=dict(in_channels=[64, 128, 256, 512]),
)

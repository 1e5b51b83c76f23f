"""Mask R-CNN, static ResNet-50, FPN, COCO, 1x schedule.

The baseline. ImageNet weights are fetched from their public address when training starts.

    bash tools/dist_train.sh configs/mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py 8

Cost: 12 epochs of 117 k images at 1333x800, 16 images a step: expect about half a day on 8 GPUs.
Gives box and mask AP.
"""
_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'

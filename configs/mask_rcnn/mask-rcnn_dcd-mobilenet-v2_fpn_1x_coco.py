"""Mask R-CNN, COCO, 1x, MobileNetV2 1.0: dynamic channel fusion (Li et al., 2021).

    bash tools/dist_train.sh configs/mask_rcnn/mask-rcnn_dcd-mobilenet-v2_fpn_1x_coco.py 8

Cost: 12 epochs of 117 k images at 1333x800, 16 images a step, and more per step than the static net;
tools/benchmark.py measures how much.
"""
_base_ = './mask-rcnn_mobilenet-v2_fpn_1x_coco.py'
custom_imports = dict(imports=['mmkerneldna'], allow_failed_imports=False)
conv = dict(type='DCDConv2d', form='mobilenet')
model = dict(
    backbone=dict(_delete_=True, type='DynamicConvs', conv=conv, module=_base_.model.backbone))

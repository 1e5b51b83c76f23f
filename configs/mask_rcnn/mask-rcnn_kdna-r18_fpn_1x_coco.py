"""Mask R-CNN, KernelDNA ResNet-18, FPN, COCO, 1x; about half a day on 8 GPUs.
bash tools/dist_train.sh configs/mask_rcnn/mask-rcnn_kdna-r18_fpn_1x_coco.py 8
"""

_base_ = ['./mask-rcnn_r18_fpn_1x_coco.py', '../_base_/mmkerneldna.py']
model = dict(backbone=dict(type='KDNAResNet'))

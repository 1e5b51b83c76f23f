"""Faster R-CNN, KernelDNA ResNet-50, FPN, COCO, 1x; about half a day on 8 GPUs.
bash tools/dist_train.sh configs/faster_rcnn/faster-rcnn_kdna-r50_fpn_1x_coco.py 8
"""

_base_ = ['./faster-rcnn_r50_fpn_1x_coco.py', '../_base_/mmkerneldna.py']
model = dict(backbone=dict(type='KDNAResNet'))

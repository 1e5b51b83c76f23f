"""Faster R-CNN, ResNet-50 whose blocks are skipped per image (half of them), FPN, COCO, 1x; about half a day on 8 GPUs.
bash tools/dist_train.sh configs/faster_rcnn/faster-rcnn_skip-r50_fpn_1x_coco.py 8
"""

_base_ = ['./faster-rcnn_r50_fpn_1x_coco.py', '../_base_/mmkerneldna.py']
model = dict(backbone=dict(_delete_=True, type='SkipBlocks', keep=0.5, module=_base_.model.backbone))

"""RetinaNet, static ResNet-50, FPN, COCO, 1x; about half a day on 8 GPUs.
bash tools/dist_train.sh configs/retinanet/retinanet_r50_fpn_1x_coco.py 8
"""

_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

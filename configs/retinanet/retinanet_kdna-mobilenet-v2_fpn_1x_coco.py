"""RetinaNet, KernelDNA MobileNetV2 1.0, FPN, COCO, 1x; about half a day on 8 GPUs.
bash tools/dist_train.sh configs/retinanet/retinanet_kdna-mobilenet-v2_fpn_1x_coco.py 8
"""

_base_ = ['./retinanet_mobilenet-v2_fpn_1x_coco.py', '../_base_/mmkerneldna.py']
model = dict(backbone=dict(type='KDNAMobileNetV2'))

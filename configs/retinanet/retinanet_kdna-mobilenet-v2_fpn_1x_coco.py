"""RetinaNet, KernelDNA MobileNetV2 1.0, FPN, COCO, 1x schedule.

The backbone shares kernels (1x1 convs of the inner blocks of the 32- to 160-channel stages borrow their kernels)
and starts from upstream's ImageNet weights of the static net, derived for it when the training starts:

    bash tools/dist_train.sh configs/retinanet/retinanet_kdna-mobilenet-v2_fpn_1x_coco.py 8

From scratch:

    bash tools/dist_train.sh configs/retinanet/retinanet_kdna-mobilenet-v2_fpn_1x_coco.py 8

Cost: 12 epochs of 117 k images at 1333x800, 16 images a step: expect about half a day on 8 GPUs.
Gives box AP.
"""
_base_ = './retinanet_mobilenet-v2_fpn_1x_coco.py'
custom_imports = dict(imports=['mmkerneldna'], allow_failed_imports=False)
model = dict(backbone=dict(type='KDNAMobileNetV2'))

"""Mask R-CNN, KernelDNA ResNet-50, FPN, COCO, 1x schedule.

The backbone shares kernels (blocks 3, 4, 7, 3; the 3x3 convs of four blocks of stages 3 and 4 borrow their kernels)
and starts from upstream's ImageNet weights of the static net, derived for it when the training starts:

    bash tools/dist_train.sh configs/mask_rcnn/mask-rcnn_kdna-r50_fpn_1x_coco.py 8

From scratch, with nothing frozen:

    bash tools/dist_train.sh configs/mask_rcnn/mask-rcnn_kdna-r50_fpn_1x_coco.py 8 \
        --cfg-options model.backbone.frozen_stages=-1 model.backbone.norm_eval=False model.backbone.init_cfg=None

Cost: 12 epochs of 117 k images at 1333x800, 16 images a step: expect about half a day on 8 GPUs.
Gives box and mask AP.
"""
_base_ = './mask-rcnn_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['mmkerneldna'], allow_failed_imports=False)
model = dict(backbone=dict(type='KDNAResNet'))

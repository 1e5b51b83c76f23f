"""UPerNet, KernelDNA ResNet-50, ADE20K, 160 k iterations.

The backbone shares kernels (blocks 3, 4, 7, 3; the 3x3 convs of four blocks of stages 3 and 4 borrow their kernels)
and starts from random weights unless told otherwise. From ImageNet weights (tools/convert_checkpoint.py
makes them of a released checkpoint; WEIGHTS is the file it writes):

    bash tools/dist_train.sh configs/upernet/upernet_kdna-r50_4xb4-160k_ade20k-512x512.py 4 \
        --cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=WEIGHTS

model.backbone.deep_stem=False goes with weights whose stem is one 7x7 conv.

From scratch:

    bash tools/dist_train.sh configs/upernet/upernet_kdna-r50_4xb4-160k_ade20k-512x512.py 4

Cost: 160 k steps of 16 crops of 512x512: expect about a day on 4 GPUs. Gives mIoU.
"""
_base_ = './upernet_r50_4xb4-160k_ade20k-512x512.py'
custom_imports = dict(imports=['mmkerneldna'], allow_failed_imports=False)
model = dict(pretrained=None, backbone=dict(type='KDNAResNet', deep_stem=True))

"""PSPNet, KernelDNA ResNet-18, output stride 8, ADE20K, 160 k iterations.

The backbone shares kernels (blocks 2, 2, 3, 3; one conv of every block of stages 3 and 4 borrows its kernel)
and starts from upstream's ImageNet weights of the static net, derived for it when the training starts:

    bash tools/dist_train.sh configs/pspnet/pspnet_kdna-r18-d8_4xb4-160k_ade20k-512x512.py 4

model.backbone.deep_stem=False goes with other weights (model.pretrained=FILE) whose stem is one 7x7 conv.

From scratch:

    bash tools/dist_train.sh configs/pspnet/pspnet_kdna-r18-d8_4xb4-160k_ade20k-512x512.py 4 \
        --cfg-options model.pretrained=None

Cost: 160 k steps of 16 crops of 512x512: expect about a day on 4 GPUs. Gives mIoU.
"""
_base_ = './pspnet_r18-d8_4xb4-160k_ade20k-512x512.py'
custom_imports = dict(imports=['mmkerneldna'], allow_failed_imports=False)
model = dict(backbone=dict(type='KDNAResNet', deep_stem=True))

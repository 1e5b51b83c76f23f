"""PSPNet, KernelDNA ResNet-50, output stride 8, ADE20K, 160 k iterations; about a day on 4 GPUs.
bash tools/dist_train.sh configs/pspnet/pspnet_kdna-r50-d8_4xb4-160k_ade20k-512x512.py 4
"""

_base_ = ['./pspnet_r50-d8_4xb4-160k_ade20k-512x512.py', '../_base_/mmkerneldna.py']
model = dict(backbone=dict(type='KDNAResNet', deep_stem=True))

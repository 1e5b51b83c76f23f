"""DeepLabV3+, KernelDNA ResNet-18, output stride 8, ADE20K, 160 k iterations; about a day on 4 GPUs.
bash tools/dist_train.sh configs/deeplabv3plus/deeplabv3plus_kdna-r18-d8_4xb4-160k_ade20k-512x512.py 4
"""

_base_ = ['./deeplabv3plus_r18-d8_4xb4-160k_ade20k-512x512.py', '../_base_/mmkerneldna.py']
model = dict(backbone=dict(type='KDNAResNet', deep_stem=True))

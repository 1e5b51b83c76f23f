"""UPerNet, KernelDNA MobileNetV2 1.0, ADE20K, 160 k iterations; about a day on 4 GPUs.
bash tools/dist_train.sh configs/upernet/upernet_kdna-mobilenet-v2_4xb4-160k_ade20k-512x512.py 4
"""

_base_ = ['./upernet_mobilenet-v2_4xb4-160k_ade20k-512x512.py', '../_base_/mmkerneldna.py']
model = dict(backbone=dict(type='KDNAMobileNetV2'))

"""UPerNet, KernelDNA ResNet-18, otherwise upernet_r18_1xb8-1k_camvid-352x352.py; minutes on one GPU.
python tools/train.py configs/camvid/upernet_kdna-r18_1xb8-1k_camvid-352x352.py
"""

_base_ = './upernet_r18_1xb8-1k_camvid-352x352.py'
model = dict(backbone=dict(type='KDNAResNet'))

"""FCN, KernelDNA ResNet-18, otherwise fcn_r18-d8_1xb8-1k_camvid-352x352.py; minutes on one GPU.
python tools/train.py configs/camvid/fcn_kdna-r18-d8_1xb8-1k_camvid-352x352.py
"""

_base_ = './fcn_r18-d8_1xb8-1k_camvid-352x352.py'
model = dict(backbone=dict(type='KDNAResNet'))

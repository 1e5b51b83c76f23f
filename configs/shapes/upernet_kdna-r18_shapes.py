"""UPerNet, KernelDNA ResNet-18, otherwise upernet_r18_shapes.py.

    python tools/train.py configs/shapes/upernet_kdna-r18_shapes.py

Part of `make demo`. Cost class: two minutes on two CPU cores.
"""
_base_ = './upernet_r18_shapes.py'

model = dict(backbone=dict(type='KDNAResNet'))

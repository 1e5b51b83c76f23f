"""UPerNet, KernelDNA ResNet-18, otherwise upernet_r18_shapes.py; two minutes on two CPU cores, part of `make demo`.
python tools/train.py configs/shapes/upernet_kdna-r18_shapes.py
"""

_base_ = './upernet_r18_shapes.py'
model = dict(backbone=dict(type='KDNAResNet'))

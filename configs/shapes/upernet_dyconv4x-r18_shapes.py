"""UPerNet, shapes, ResNet-18: dynamic convolution, 4 kernels (Chen et al., 2020).
python tools/train.py configs/shapes/upernet_dyconv4x-r18_shapes.py
"""

_base_ = './upernet_r18_shapes.py'
model = dict(backbone=dict(_delete_=True, type='DynamicConvs', conv='dyconv4x', module=_base_.model.backbone))

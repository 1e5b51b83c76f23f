"""UPerNet, shapes, ResNet-18: ODConv, 4 kernels (Li et al., 2022).
python tools/train.py configs/shapes/upernet_odconv4x-r18_shapes.py
"""

_base_ = './upernet_r18_shapes.py'
model = dict(backbone=dict(_delete_=True, type='DynamicConvs', conv='odconv4x', module=_base_.model.backbone))

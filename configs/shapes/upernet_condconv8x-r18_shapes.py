"""UPerNet, shapes, ResNet-18: CondConv, 8 experts (Yang et al., 2019).
python tools/train.py configs/shapes/upernet_condconv8x-r18_shapes.py
"""

_base_ = './upernet_r18_shapes.py'
model = dict(backbone=dict(_delete_=True, type='DynamicConvs', conv='condconv8x', module=_base_.model.backbone))

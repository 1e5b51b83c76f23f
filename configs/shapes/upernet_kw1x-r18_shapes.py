"""UPerNet, shapes, ResNet-18: KernelWarehouse, budget 1x (Li et al., 2024).
python tools/train.py configs/shapes/upernet_kw1x-r18_shapes.py
"""

_base_ = './upernet_r18_shapes.py'
model = dict(backbone=dict(_delete_=True, type='DynamicConvs', conv='kw1x', module=_base_.model.backbone))

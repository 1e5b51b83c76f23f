"""UPerNet, shapes, ResNet-18: KernelDNA's input gate on static kernels.
python tools/train.py configs/shapes/upernet_se-r18_shapes.py
"""

_base_ = './upernet_r18_shapes.py'
model = dict(backbone=dict(_delete_=True, type='DynamicConvs', conv='se', module=_base_.model.backbone))

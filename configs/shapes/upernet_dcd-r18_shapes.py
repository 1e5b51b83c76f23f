"""UPerNet, shapes, ResNet-18: dynamic channel fusion (Li et al., 2021).

    python tools/train.py configs/shapes/upernet_dcd-r18_shapes.py

From scratch. Costs more per step than the static net; tools/benchmark.py measures how much.
"""
_base_ = './upernet_r18_shapes.py'
custom_imports = dict(imports=['mmkerneldna'], allow_failed_imports=False)
conv = dict(type='DCDConv2d', pool_size=2)
model = dict(
    backbone=dict(_delete_=True, type='DynamicConvs', conv=conv, module=_base_.model.backbone))

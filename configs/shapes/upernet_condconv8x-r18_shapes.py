"""UPerNet, shapes, ResNet-18: CondConv, 8 experts (Yang et al., 2019).

    python tools/train.py configs/shapes/upernet_condconv8x-r18_shapes.py

From scratch. Costs more per step than the static net; tools/benchmark.py measures how much.
"""
_base_ = './upernet_r18_shapes.py'
custom_imports = dict(imports=['mmkerneldna'], allow_failed_imports=False)
conv = dict(type='CondConv2d', num_experts=8)
model = dict(
    backbone=dict(_delete_=True, type='DynamicConvs', conv=conv, module=_base_.model.backbone))

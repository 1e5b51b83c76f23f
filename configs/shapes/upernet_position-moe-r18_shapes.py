"""UPerNet whose lateral 1x1 convolutions are four experts per position, static ResNet-18, on the generated shapes set.
python tools/train.py configs/shapes/upernet_position-moe-r18_shapes.py
"""

_base_ = './upernet_r18_shapes.py'
model = dict(
    decode_head=dict(
        _delete_=True,
        type='DynamicConvs',
        conv=dict(type='PositionMoE2d', num_experts=4),
        include=['lateral_convs.*.conv'],
        module=_base_.model.decode_head,
    )
)

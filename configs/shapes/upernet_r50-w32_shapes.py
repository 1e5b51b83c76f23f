"""UPerNet, static ResNet-50 of half the width, otherwise upernet_r34-w32_shapes.py: the line to beat for its gates.
python tools/train.py configs/shapes/upernet_r50-w32_shapes.py
"""

_base_ = './upernet_r34-w32_shapes.py'
model = dict(backbone=dict(depth=50), decode_head=dict(in_channels=[128, 256, 512, 1024]), auxiliary_head=dict(in_channels=512))

"""UPerNet, static ResNet-18 of half the width, otherwise upernet_r34-w32_shapes.py: the line to beat for its gates.
python tools/train.py configs/shapes/upernet_r18-w32_shapes.py
"""

_base_ = './upernet_r34-w32_shapes.py'
model = dict(backbone=dict(depth=18))

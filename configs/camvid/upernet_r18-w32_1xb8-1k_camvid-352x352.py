"""UPerNet, static ResNet-18, otherwise upernet_r34-w32_1xb8-1k_camvid-352x352.py: the line to beat for its gates.
python tools/train.py configs/camvid/upernet_r18-w32_1xb8-1k_camvid-352x352.py
"""

_base_ = './upernet_r34-w32_1xb8-1k_camvid-352x352.py'
model = dict(backbone=dict(depth=18))

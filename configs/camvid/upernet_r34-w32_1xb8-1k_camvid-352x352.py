"""UPerNet, static ResNet-34 of half the width, light heads, on CamVid: what SkipBlocks and SparseBlocks start from.
python tools/train.py configs/camvid/upernet_r34-w32_1xb8-1k_camvid-352x352.py
"""

_base_ = './upernet_r18_1xb8-1k_camvid-352x352.py'
model = dict(
    backbone=dict(depth=34, base_channels=32, stem_channels=32),
    decode_head=dict(in_channels=[32, 64, 128, 256], channels=64),
    auxiliary_head=dict(in_channels=128, channels=64),
)

"""UPerNet, static ResNet-34 of half the width, otherwise upernet_r18_shapes.py: what SkipBlocks and SparseBlocks start from.
python tools/train.py configs/shapes/upernet_r34-w32_shapes.py
"""

_base_ = './upernet_r18_shapes.py'
max_iters = 260
model = dict(
    backbone=dict(depth=34, base_channels=32, stem_channels=32),
    decode_head=dict(in_channels=[32, 64, 128, 256]),
    auxiliary_head=dict(in_channels=128),
)
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=40),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=0, end=max_iters, T_max=max_iters),
]

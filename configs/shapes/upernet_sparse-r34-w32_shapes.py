"""UPerNet, ResNet-34 of half the width; in stages 1 and 2 tiles of 8x8 positions are computed where a gate says so.
python tools/train.py configs/shapes/upernet_sparse-r34-w32_shapes.py
python tools/sweep.py configs/shapes/upernet_sparse-r34-w32_shapes.py CHECKPOINT --keep 1 .75 .5 .25
"""

_base_ = './upernet_r34-w32_shapes.py'
model = dict(backbone=dict(_delete_=True, type='SparseBlocks', keep=0.5, tile=8, stages=(0, 1), module=_base_.model.backbone))

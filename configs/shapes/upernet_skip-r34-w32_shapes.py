"""UPerNet, ResNet-34 of half the width whose blocks are skipped per image; a trained one runs at any keep rate.
python tools/train.py configs/shapes/upernet_skip-r34-w32_shapes.py
python tools/sweep.py configs/shapes/upernet_skip-r34-w32_shapes.py CHECKPOINT --keep 1 .75 .5 .25
"""

_base_ = './upernet_r34-w32_shapes.py'
model = dict(backbone=dict(_delete_=True, type='SkipBlocks', keep=0.5, module=_base_.model.backbone))

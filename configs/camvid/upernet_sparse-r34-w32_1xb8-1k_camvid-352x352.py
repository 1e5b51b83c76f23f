"""UPerNet, ResNet-34 of half the width on CamVid; in stages 1 and 2 tiles of 8x8 positions are computed where a gate says so.
python tools/train.py configs/camvid/upernet_sparse-r34-w32_1xb8-1k_camvid-352x352.py
python tools/sweep.py configs/camvid/upernet_sparse-r34-w32_1xb8-1k_camvid-352x352.py CHECKPOINT --keep 1 .75 .5 .25
"""

_base_ = './upernet_r34-w32_1xb8-1k_camvid-352x352.py'
model = dict(backbone=dict(_delete_=True, type='SparseBlocks', keep=0.5, tile=8, stages=(0, 1), module=_base_.model.backbone))

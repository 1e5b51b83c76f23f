"""UPerNet, ResNet-34 of half the width whose blocks are skipped per image, on CamVid; a trained one runs at any keep rate.
python tools/train.py configs/camvid/upernet_skip-r34-w32_1xb8-1k_camvid-352x352.py
python tools/sweep.py configs/camvid/upernet_skip-r34-w32_1xb8-1k_camvid-352x352.py CHECKPOINT --keep 1 .75 .5 .25
"""

_base_ = './upernet_r34-w32_1xb8-1k_camvid-352x352.py'
model = dict(backbone=dict(_delete_=True, type='SkipBlocks', keep=0.5, module=_base_.model.backbone))

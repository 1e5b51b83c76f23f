"""UPerNet, ResNet-50 whose first two stages compute half of their tiles of 8x8 positions, ADE20K, 160 k iterations; about a
day on 4 GPUs.
bash tools/dist_train.sh configs/upernet/upernet_sparse-r50_4xb4-160k_ade20k-512x512.py 4
"""

_base_ = ['./upernet_r50_4xb4-160k_ade20k-512x512.py', '../_base_/mmkerneldna.py']
model = dict(backbone=dict(_delete_=True, type='SparseBlocks', keep=0.5, tile=8, stages=(0, 1), module=_base_.model.backbone))

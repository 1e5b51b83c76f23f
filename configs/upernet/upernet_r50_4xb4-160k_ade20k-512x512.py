"""UPerNet, static ResNet-50, ADE20K, 160 k iterations; about a day on 4 GPUs.
bash tools/dist_train.sh configs/upernet/upernet_r50_4xb4-160k_ade20k-512x512.py 4
"""

_base_ = 'mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py'
model = dict(data_preprocessor=dict(size=(512, 512)))

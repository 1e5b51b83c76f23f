"""UPerNet, static ResNet-18, ADE20K, 160 k iterations.

The baseline. ImageNet weights are fetched from their public address when training starts.

    bash tools/dist_train.sh configs/upernet/upernet_r18_4xb4-160k_ade20k-512x512.py 4

Cost: 160 k steps of 16 crops of 512x512: expect about a day on 4 GPUs. Gives mIoU.
"""
_base_ = 'mmseg::upernet/upernet_r18_4xb4-160k_ade20k-512x512.py'
model = dict(data_preprocessor=dict(size=(512, 512)))

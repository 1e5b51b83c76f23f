"""UPerNet, KernelDNA ResNet-18, otherwise upernet_r18_1xb8-1k_camvid-352x352.py.

    python tools/train.py configs/camvid/upernet_kdna-r18_1xb8-1k_camvid-352x352.py \
        --cfg-options data_root=/path/to/camvid/

Cost class: as its static twin.
"""
_base_ = './upernet_r18_1xb8-1k_camvid-352x352.py'

model = dict(backbone=dict(type='KDNAResNet'))

"""FCN, static ResNet-18 (V1c stem, output stride 8), from scratch on CamVid (11 classes); minutes on one GPU.
python tools/train.py configs/camvid/fcn_r18-d8_1xb8-1k_camvid-352x352.py
"""

_base_ = [
    'mmseg::_base_/models/fcn_r50-d8.py',
    '../_base_/datasets/camvid_semantic.py',
    '../_base_/schedules/scratch_1k.py',
    'mmseg::_base_/default_runtime.py',
]

norm_cfg = dict(type='BN', requires_grad=True)
# ResNet with deep_stem is ResNetV1c; spelt this way a variant changes the backbone's type and nothing else
model = dict(
    pretrained=None,
    data_preprocessor=dict(size=(352, 352)),
    backbone=dict(type='ResNet', deep_stem=True, depth=18, norm_cfg=norm_cfg),
    decode_head=dict(in_channels=512, channels=128, num_classes=11, norm_cfg=norm_cfg),
    auxiliary_head=dict(in_channels=256, channels=64, num_classes=11, norm_cfg=norm_cfg),
)

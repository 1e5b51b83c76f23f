"""UPerNet, timm's ConvNeXt-T with four experts per position that start as its dense perceptrons, ADE20K, 160 k iterations.
Needs `pip install timm`, which loads the ImageNet weights. Without a GPU: --cfg-options optim_wrapper.type=OptimWrapper
bash tools/dist_train.sh configs/upernet/upernet_position-moe-convnext-tiny_8xb2-amp-160k_ade20k-512x512.py 8
"""

_base_ = 'mmseg::convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py'
custom_imports = dict(_delete_=True, imports=['mmkerneldna'], allow_failed_imports=False)
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(
        _delete_=True,
        type='PositionFFNs',
        num_experts=4,
        include=['*stages_[23].*'],
        module=dict(type='TIMMBackbone', model_name='convnext_tiny.fb_in1k', pretrained=True, drop_path_rate=0.4),
    ),
)
# The base's learning rates per stage know mmpretrain's names alone.
optim_wrapper = dict(
    _delete_=True,
    type='AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=0.0001, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)

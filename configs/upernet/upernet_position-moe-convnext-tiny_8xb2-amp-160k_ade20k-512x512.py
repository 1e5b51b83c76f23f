"""UPerNet, ConvNeXt-T with four experts per position that start as its dense perceptrons, ADE20K, 160 k iterations. Needs
mmpretrain, as its base does.
bash tools/dist_train.sh configs/upernet/upernet_position-moe-convnext-tiny_8xb2-amp-160k_ade20k-512x512.py 8
"""

_base_ = 'mmseg::convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py'
custom_imports = dict(_delete_=True, imports=['mmkerneldna', 'mmpretrain.models'], allow_failed_imports=True)
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(
        _delete_=True,
        type='PositionFFNs',
        num_experts=4,
        include=['stages.2.*', 'stages.3.*'],
        module=dict(_base_.model.backbone, linear_pw_conv=False),
    ),
)

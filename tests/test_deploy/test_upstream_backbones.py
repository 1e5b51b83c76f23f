"""Every convolutional backbone that upstream ships is deployed alone, as its constructor leaves it."""

import pytest
import torch
from helpers import assert_same, randomise
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmkerneldna.deploy import deploy
from mmkerneldna.deploy.probe import ProbeError, make_probe

STAGES = {
    f'stage{n}': dict(num_modules=1, num_branches=n, block='BASIC', num_blocks=(1,) * n, num_channels=(4, 8, 16, 32)[:n])
    for n in (2, 3, 4)
}
HRNET = dict(
    extra=dict(STAGES, stage1=dict(num_modules=1, num_branches=1, block='BOTTLENECK', num_blocks=(1,), num_channels=(8,)))
)
SWIN = dict(embed_dims=24, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8))
R18 = dict(type='ResNet', depth=18, base_channels=8, norm_cfg=dict(type='BN'))
BN = dict(norm_cfg=dict(type='BN'))

# upstream's own widths where they can't be made smaller
BACKBONES = {
    'mmdet': dict(
        ResNet=dict(depth=50, base_channels=8),
        ResNetV1d=dict(depth=18, base_channels=8, stem_channels=8),
        ResNeXt=dict(depth=50, groups=4, base_width=4),
        RegNet=dict(arch='regnetx_400mf'),
        SSDVGG=dict(depth=11),
        HRNet=HRNET,
        MobileNetV2=dict(widen_factor=0.25),
        Res2Net=dict(depth=50, scales=4, base_width=6, base_channels=8),
        HourglassNet=dict(downsample_times=2, num_stacks=1, stage_channels=(16,) * 3, stage_blocks=(1, 1, 1), feat_channel=16),
        CSPDarknet=dict(widen_factor=0.25, deepen_factor=0.33),
        CSPNeXt=dict(widen_factor=0.25, deepen_factor=0.33),
        SwinTransformer=SWIN,
        EfficientNet=dict(arch='b0'),
        PyramidVisionTransformerV2=dict(num_layers=[1] * 4),
        DetectoRS_ResNet=dict(
            depth=50,
            base_channels=8,
            conv_cfg=dict(type='ConvAWS'),
            sac=dict(type='SAC', use_deform=False),
            stage_with_sac=(False, True, True, True),
        ),
    ),
    'mmseg': dict(
        ResNet=dict(depth=18, base_channels=8),
        ResNetV1c=dict(depth=18, base_channels=8, dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1)),
        HRNet=HRNET,
        FastSCNN={},
        UNet=dict(base_channels=8),
        CGNet=dict(num_channels=(8, 16, 32), num_blocks=(1, 2)),
        MobileNetV2=dict(widen_factor=0.5),
        MobileNetV3=dict(arch='small'),
        ERFNet={},
        BiSeNetV2={},
        BiSeNetV1=dict(backbone_cfg=dict(R18, base_channels=64), **BN),
        PIDNet=dict(channels=8, ppm_channels=8, num_stem_blocks=1, num_branch_blocks=1),
        DDRNet=dict(channels=8, ppm_channels=16),
        MSCAN=dict(embed_dims=[8, 16, 32, 64], depths=[1] * 4, **BN),
        MixVisionTransformer=dict(num_layers=[1] * 4),
        STDCNet=dict(
            stdc_type='STDCNet1',
            in_channels=3,
            channels=(8, 16, 32, 64, 128),
            bottleneck_type='cat',
            num_convs=4,
            act_cfg=dict(type='ReLU'),
            **BN,
        ),
    ),
}
#: their norms follow something else, or kernels that are standardised at run time
EXCEPT = ('CGNet', 'MSCAN', 'DetectoRS_ResNet')
CASES = [(scope, name) for scope, table in BACKBONES.items() for name in table]


def build(scope, name):
    with DefaultScope.overwrite_default_scope(scope):
        return randomise(MODELS.build(dict(type=f'{scope}.{name}', **BACKBONES[scope][name])))


@torch.no_grad()
@pytest.mark.parametrize('scope, name', CASES, ids=[f'{scope}.{name}' for scope, name in CASES])
def test_deploys_alone(scope, name):
    model = build(scope, name)
    deployed = deploy(model)
    model.eval()
    run = make_probe(model)
    assert_same(run(deployed), run(model))
    convs = sum(isinstance(m, nn.Conv2d) for m in model.modules())
    norms = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    report = deployed.deploy_report
    assert report.norms_folded + len(report.norms_left) == norms
    assert report.norms_folded >= 0.5 * norms or name in EXCEPT, 'most norms follow a plain convolution'
    assert sum(isinstance(m, nn.Conv2d) for m in deployed.modules()) >= convs


class Flatter(nn.Module):
    """Takes no image at all."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(5, 4, 1)

    def forward(self, x, boxes):
        return self.conv(x) + boxes


def test_what_takes_no_image_asks_for_a_probe():
    with pytest.raises(ProbeError, match='no random image goes through Flatter .*TypeError.*; pass probe='):
        deploy(Flatter())
    deployed = deploy(Flatter(), probe=lambda model: model(torch.ones(1, 5, 4, 4), torch.ones(())))
    assert deployed.deploy_report.deviation < 1e-5

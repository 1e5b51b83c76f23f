"""Parameters of the paper nets (ImageNet head included) against the figures the papers print, in millions."""
import pytest
from mmdet.models import MobileNetV2, ResNet

from mmkerneldna.layers import swap_convs

NETS = {'r18': lambda: ResNet(18), 'r50': lambda: ResNet(50), 'mv2': lambda: MobileNetV2(out_indices=(7, ))}
FEATURES = {'r18': 512, 'r50': 2048, 'mv2': 1280}


def head(net: str) -> int:
    return FEATURES[net] * 1000 + 1000


def cond_conv_extras(net: str) -> int:
    """What the paper's CondConv nets have beyond ours.

    Their classifier is a mixture of 8 too, and the layers of a block share one routing (8 * C_in + 8), where each of
    our layers has its own.
    """
    classifier = 7 * head(net) + 8 * FEATURES[net] + 8
    private_routings = {  # input channels of the second and third layer of each block
        'r18': [256, 512, 512],
        'mv2': [576, 576, 576, 576, 576, 576, 960, 960, 960, 960, 960, 960],
    }
    return classifier - sum(8 * channels + 8 for channels in private_routings[net])


def dcd_extras(net: str) -> int:
    """The released DCD nets have a dynamic classifier: 32 latent and hidden channels, Lambda, Phi, P, Q, two norms."""
    features = FEATURES[net]
    return 2 * features * 32 + 2 * 32 * 1000 + 32 * 32 + 32 * 32**2 + 4 * 32


@pytest.mark.parametrize('net, conv, extras, published', [
    ('r18', dict(type='ODConv2d', num_experts=4), None, 44.90),
    ('r50', dict(type='ODConv2d', num_experts=1), None, 28.64),
    ('r50', dict(type='ODConv2d', num_experts=4), None, 90.67),
    ('mv2', dict(type='ODConv2d', num_experts=1), None, 4.94),
    ('mv2', dict(type='ODConv2d', num_experts=4), None, 11.51),
    ('r18', dict(type='DyConv2d'), None, 45.47),
    ('mv2', dict(type='DyConv2d'), None, 12.40),
    ('r18', dict(type='CondConv2d'), cond_conv_extras, 81.35),
    ('mv2', dict(type='CondConv2d'), cond_conv_extras, 22.88),
    ('r18', dict(type='DCDConv2d', pool_size=2), dcd_extras, 14.70),
    ('r50', dict(type='DCDConv2d'), dcd_extras, 29.84),
])
def test_published_parameters(net, conv, extras, published):
    backbone = swap_convs(NETS[net](), conv)
    parameters = sum(p.numel() for p in backbone.parameters()) + head(net) + (extras(net) if extras else 0)
    assert parameters / 1e6 == pytest.approx(published, abs=0.006)


@pytest.mark.parametrize('net, conv, millions', [
    ('r18', dict(type='CondConv2d'), 77.768),  # published 81.35: see cond_conv_extras
    ('r18', dict(type='DCDConv2d', pool_size=2), 14.573),  # published 14.70: see dcd_extras
])
def test_nets_whose_published_figure_counts_more_than_the_backbone(net, conv, millions):
    backbone = swap_convs(NETS[net](), conv)
    assert (sum(p.numel() for p in backbone.parameters()) + head(net)) / 1e6 == pytest.approx(millions, abs=0.001)

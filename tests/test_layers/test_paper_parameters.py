"""Parameters of the paper nets (ImageNet head included) against the figures the papers print, in millions."""

import pytest
from mmdet.models import MobileNetV2, ResNet

from mmkerneldna.layers import DCDConv2d, FDConv2d, swap_convs

NETS = {'r18': lambda: ResNet(18), 'r50': lambda: ResNet(50), 'mv2': lambda: MobileNetV2(out_indices=(7,))}
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


@pytest.mark.parametrize(
    'net, conv, extras, published',
    [
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
        ('mv2', dict(type='DCDConv2d', form='mobilenet', reduction=16), None, 5.54),  # printed as 5.5; as the published weights
    ],
)
def test_published_parameters(net, conv, extras, published):
    backbone = swap_convs(NETS[net](), conv)
    parameters = sum(p.numel() for p in backbone.parameters()) + head(net) + (extras(net) if extras else 0)
    assert parameters / 1e6 == pytest.approx(published, abs=0.006)


@pytest.mark.parametrize(
    'net, conv, millions',
    [
        ('r18', dict(type='CondConv2d'), 77.768),  # published 81.35: see cond_conv_extras
        ('r18', dict(type='DCDConv2d', pool_size=2), 14.573),  # published 14.70: see dcd_extras
    ],
)
def test_nets_whose_published_figure_counts_more_than_the_backbone(net, conv, millions):
    backbone = swap_convs(NETS[net](), conv)
    assert (sum(p.numel() for p in backbone.parameters()) + head(net)) / 1e6 == pytest.approx(millions, abs=0.001)


def test_dcd_mobilenet_is_that_of_the_released_code():
    static, net = NETS['mv2'](), swap_convs(NETS['mv2'](), 'dcd')
    layers = [m for m in net.modules() if isinstance(m, DCDConv2d)]
    assert len(layers) == 32 and sum(p.numel() for p in net.parameters()) == 5_991_248
    assert sum(p.numel() for p in static.parameters()) == 2_223_872
    widths = {(m.in_channels, m.out_channels): (m.q.out_channels, m.fusion.pool_size, m.fusion.fc.out_features) for m in layers}
    assert widths[16, 96] == (8, 2, 8) and widths[160, 960] == (20, 2, 80)  # expand: 4 C_in features
    assert widths[96, 24] == (12, 1, 18) and widths[960, 160] == (40, 1, 200)  # project


def test_fd_resnet_50_is_that_of_the_authors():
    static, net = NETS['r50'](), swap_convs(NETS['r50'](), 'fdconv')
    paths = [path for path, m in net.named_modules() if isinstance(m, FDConv2d)]
    assert len(paths) == 48 and all(path.split('.')[-1] in ('conv1', 'conv2', 'conv3') for path in paths)
    extra = sum(p.numel() for p in net.parameters()) - sum(p.numel() for p in static.parameters())
    assert extra == 3_586_704  # published: +3.6
    # The authors' parameter is half a spectrum as pairs of numbers: of a kernel's C_out k rows each holds two too many.
    redundant = sum(2 * m.out_channels * m.kernel_size[0] for m in net.modules() if isinstance(m, FDConv2d))
    assert (extra + redundant) / 1e6 == pytest.approx(3.647, abs=0.0005)

import pytest
import torch
from helpers import conv_gmacs
from mmdet.models.backbones import MobileNetV2
from mmseg.models.backbones import MobileNetV2 as SegMobileNetV2
from torch import nn

from mmkerneldna.backbones import KDNAMobileNetV2
from mmkerneldna.layers import ChildConv2d
from mmkerneldna.sharing import SharingPlanError

HEAD = 1280 * 1000 + 1000


# Design figures, ImageNet head included.
@pytest.mark.parametrize('width, params, gmacs', [(1.0, 3.137, 0.301), (0.5, 1.878, 0.097)])
def test_paper_cost(width, params, gmacs):
    net = KDNAMobileNetV2(width)
    assert sum(p.numel() for p in net.parameters()) + HEAD == pytest.approx(params * 1e6, abs=1e3)
    assert conv_gmacs(net) + HEAD / 1e9 == pytest.approx(gmacs, abs=1e-3)


@pytest.mark.parametrize('width', [0.35, 0.5, 1.0, 1.4])
def test_every_width_shares_and_keeps_shapes(width):
    x = torch.rand(1, 3, 64, 64)
    ours, theirs = KDNAMobileNetV2(width), MobileNetV2(width)
    assert sum(isinstance(m, ChildConv2d) for m in ours.modules()) == 10
    assert [o.shape for o in ours(x)] == [o.shape for o in theirs(x)]


def test_static_baseline_is_upstream():
    ours, theirs = KDNAMobileNetV2(sharing=None).eval(), MobileNetV2()
    theirs.eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.rand(1, 3, 64, 64)
    for a, b in zip(ours(x), theirs(x)):
        torch.testing.assert_close(a, b)


def test_mmseg_strides_and_dilations():
    kwargs = dict(strides=(1, 2, 2, 1, 1, 1, 1), dilations=(1, 1, 1, 2, 2, 4, 4), out_indices=(1, 2, 4, 6))
    ours, theirs = KDNAMobileNetV2(**kwargs), SegMobileNetV2(**kwargs)
    x = torch.rand(1, 3, 64, 64)
    assert [o.shape for o in ours(x)] == [o.shape for o in theirs(x)]
    ours, theirs = (
        [m.dilation for m in net.modules() if isinstance(m, nn.Conv2d) and m.dilation != (1, 1)] for net in (ours, theirs)
    )
    assert ours == theirs == [(2, 2), (2, 2), (4, 4), (4, 4)]


def test_last_conv_only_where_it_is_read():
    assert not hasattr(KDNAMobileNetV2(out_indices=(1, 2, 4, 6)), 'conv2')
    assert hasattr(KDNAMobileNetV2(out_indices=(7,)), 'conv2')
    with pytest.raises(ValueError, match='frozen_stages=7 freezes conv2'):
        KDNAMobileNetV2(out_indices=(1, 2, 4, 6), frozen_stages=7)


def test_bad_input():
    with pytest.raises(ValueError, match=r'strides=\(1, 2\) must hold one number for each of the 7 stages'):
        KDNAMobileNetV2(strides=(1, 2))
    with pytest.raises(SharingPlanError, match="did you mean 'mobilenet_v2'"):
        KDNAMobileNetV2(sharing='mobilenetv2')


def test_frozen_stages_keep_adapters():
    net = KDNAMobileNetV2(frozen_stages=4).train()
    child = net.layer3[1].expand_conv.conv
    assert not child.weight.requires_grad and all(p.requires_grad for p in child.adapter_parameters())

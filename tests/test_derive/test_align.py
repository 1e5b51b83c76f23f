"""Relabelling hidden channels: exact, the best order, and where it is allowed."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmseg.models.backbones.resnet import ResNet

from mmkerneldna.derive import derive
from mmkerneldna.derive.align import best_order, correlation, free_hidden, relabel
from mmkerneldna.sharing import share_kernels
from tests.helpers import randomise


def bottlenecks(**kwargs):
    torch.manual_seed(0)
    net = randomise(
        ResNet(50, base_channels=4, stem_channels=4, num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(1,), **kwargs)
    )
    net.eval()
    return net


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31))
def test_relabelling_changes_nothing(seed):
    net, x = bottlenecks(), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = net(x)[0]
        order = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
        relabel(net, 'layer2.1.conv2', free_hidden(net, 'layer2.1.conv2', {}), order)
        assert torch.allclose(net(x)[0], before, rtol=1e-4, atol=1e-4)


def test_a_shuffled_copy_of_the_parent_is_found_again():
    source = bottlenecks()
    order = torch.randperm(8)
    with torch.no_grad():
        source.layer2[1].conv2.weight.copy_(-2 * source.layer2[2].conv2.weight[order])
    target = share_kernels(bottlenecks(), {'layer2.1.conv2': 'layer2.2.conv2'})
    report = derive(target, source)
    assert report.children[0].aligned and report.children[0].kernel_error < 1e-5
    with torch.no_grad():
        x = torch.randn(1, 3, 32, 32)
        target.eval()
        assert torch.allclose(target(x)[0], source(x)[0], rtol=1e-4, atol=1e-3)
    assert derive(target, source, align=False).children[0].kernel_error > 0.5


def test_channels_are_free_only_between_a_child_and_an_own_conv():
    net = bottlenecks()
    assert free_hidden(net, 'layer2.1.conv2', {'layer2.1.conv2': 'layer2.2.conv2'}) == ('layer2.1.bn2', 'layer2.1.conv3')
    assert free_hidden(net, 'layer2.1.conv2', {'layer2.1.conv3': 'layer2.2.conv3'}) is None
    assert free_hidden(net, 'layer2.1.conv2', {'layer2.2.conv3': 'layer2.1.conv3'}) is None
    assert free_hidden(net, 'layer2.1.conv3', {}) is None
    assert free_hidden(bottlenecks(norm_cfg=dict(type='GN', num_groups=2)), 'layer2.1.conv2', {}) is None


def test_the_best_order_and_correlation_against_plain_formulas():
    torch.manual_seed(0)
    similarity = -torch.eye(6)[torch.randperm(6)]  # the sign does not count
    assert torch.equal(best_order(similarity), similarity.abs().argmax(1))
    a, b = torch.randn(3, 50), torch.randn(3, 50)
    expected = torch.corrcoef(torch.cat([a, b]))[:3, 3:]
    assert torch.allclose(correlation((a, b)), expected, atol=1e-5)

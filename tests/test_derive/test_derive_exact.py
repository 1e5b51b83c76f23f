"""What must be exact: growth, children of identity blocks, children served by a free parent, neutral gates."""

import pytest
import torch
from mmdet.models.backbones import MobileNetV2
from mmseg.models.backbones.resnet import BasicBlock, ResNet
from torch import nn

from mmkerneldna.backbones import KDNAMobileNetV2, KDNAResNet
from mmkerneldna.derive import derive
from mmkerneldna.derive.neutral import neutral_gate, set_scales
from mmkerneldna.layers import ChildConv2d
from mmkerneldna.sharing import share_kernels
from tests.helpers import randomise

UNITS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def dense(depth, width=16, **kwargs):
    torch.manual_seed(depth)
    net = randomise(ResNet(depth, base_channels=width, stem_channels=width, **kwargs))
    for name, module in net.named_modules():
        if name.endswith(('bn3', 'bn2')):  # keeps 33 summed blocks in range
            module.weight.data.mul_(0.3)
    net.eval()
    return net


def features(net, size=64):
    torch.manual_seed(7)
    net.eval()
    with torch.no_grad():
        return net(torch.randn(2, 3, size, size))


def relative(ours, theirs):
    return max(float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs))


@pytest.mark.parametrize('depth', [18, 34, 50, 101])
def test_a_grown_net_without_sharing_computes_the_static_features(depth):
    source = dense(depth)
    target = KDNAResNet(depth, sharing=None, base_channels=16)
    report = derive(target, source.state_dict())
    assert relative(features(target), features(source)) < 1e-5
    assert len(report.identities) == sum(target.stage_blocks) - sum(UNITS[depth])


@pytest.mark.parametrize('depth, most', [(18, 2), (50, 3)])
def test_few_children_are_approximated_and_all_others_are_exact(depth, most):
    source = dense(depth)
    target = KDNAResNet(depth, base_channels=64 if depth == 50 else 16)
    source = dense(depth, 64 if depth == 50 else 16)
    report = derive(target, source)
    fitted = report.of_kind('fitted')
    assert len(report.children) == {18: 6, 50: 4}[depth] and len(fitted) <= most
    for row in fitted:  # with these put back, the net is the static one
        child = target.get_submodule(row.child)
        owner, _, name = row.child.rpartition('.')
        conv = nn.Conv2d(child.in_channels, child.out_channels, 3, child.stride, child.padding, bias=False)
        conv.weight.data = _own_kernel(source, target, report, row.child)
        setattr(target.get_submodule(owner), name, conv)
    if depth == 18:
        assert relative(features(target), features(source)) < 1e-5


def _own_kernel(source, target, report, path):
    stage, block, conv = path.split('.')
    before = sum(f'{stage}.{i}' in report.identities for i in range(int(block)))
    return source.get_submodule(f'{stage}.{int(block) - before}.{conv}').weight.data.clone()


def test_a_free_parent_takes_the_kernel_of_its_child():
    source = dense(18)
    target = KDNAResNet(18, sharing={'layer3.0.conv2': 'layer3.1.conv2', 'layer4.1.conv1': 'layer4.1.conv2'}, base_channels=16)
    report = derive(target, source)
    assert not report.of_kind('fitted')
    assert relative(features(target), features(source)) < 1e-5
    assert torch.equal(target.layer3[1].conv2.weight, source.layer3[0].conv2.weight)


def test_resnet18_grows_into_the_blocks_of_resnet34():
    source = dense(18)
    target = KDNAResNet(34, sharing=None, base_channels=16)
    derive(target, source)
    assert relative(features(target), features(source)) < 1e-5


@pytest.mark.parametrize('width', [0.5, 1.0])
def test_mobilenet_keeps_its_features_where_nothing_is_shared(width):
    torch.manual_seed(0)
    source = randomise(MobileNetV2(width, out_indices=(1, 2, 4, 6)))
    target = KDNAMobileNetV2(width, sharing=None, out_indices=(1, 2, 4, 6))
    report = derive(target, source)
    assert relative(features(target, 32), features(source, 32)) < 1e-5
    assert report.left_out == ['conv2.bn', 'conv2.conv']


def test_a_plan_of_equal_kernels_is_exact():
    source = dense(18)
    with torch.no_grad():
        source.layer3[1].conv1.weight.copy_(source.layer3[1].conv2.weight)
    target = share_kernels(dense(18), {'layer3.1.conv1': 'layer3.1.conv2'})
    report = derive(target, source)
    assert [row.kind for row in report.children] == ['exact']
    assert relative(features(target), features(source)) < 1e-5


@pytest.mark.parametrize('bias', [0.0, 1.5, -2.0])
def test_a_neutral_gate_and_its_inverse_leave_the_plain_convolution(bias):
    torch.manual_seed(0)
    parent = nn.Conv2d(8, 8, 3, padding=1)
    child = randomise(ChildConv2d(parent, padding=1)).eval()
    set_scales(child, torch.ones(8, 1, 1, 1), torch.ones(1, 1, 3, 3), neutral_gate(child, bias))
    x = torch.randn(2, 8, 9, 9)
    plain = nn.functional.conv2d(x, parent.weight, padding=1)
    assert torch.allclose(child(x), plain, atol=1e-5)


def test_identity_blocks_hold_finite_copies_of_a_neighbour():
    source, target = dense(50), KDNAResNet(50, sharing=None, base_channels=16)
    report = derive(target, source)
    (path,) = report.identities
    block = target.get_submodule(path)
    assert block.bn3.weight.abs().max() == 0 and block.bn3.bias.abs().max() == 0
    near = [source.layer3[i].conv2.weight for i in range(6)]
    assert any(torch.equal(block.conv2.weight, kernel) for kernel in near)
    assert not isinstance(block, BasicBlock)

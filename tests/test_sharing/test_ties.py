"""A kernel under two names: where it is saved, how it is loaded, and who owns it when the parent is gone."""

import copy
import io
import pickle

import pytest
import torch
from helpers import randomise
from mmcv.cnn import ConvModule
from mmengine.model import ExponentialMovingAverage
from mmengine.runner.checkpoint import get_state_dict
from mmengine.runner.checkpoint import load_state_dict as mmengine_load
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from mmkerneldna.backbones import KDNAResNet
from mmkerneldna.errors import UsageError
from mmkerneldna.layers import ChildConv2d
from mmkerneldna.measure.complexity import deployed_params
from mmkerneldna.sharing import SharingPlanError, find_ties, share_kernels


class Net(nn.Module):
    """Three convs in a row."""

    def __init__(self, channels=8):
        super().__init__()
        for name in 'abc':
            setattr(self, name, nn.Conv2d(channels, channels, 3, padding=1, bias=False))

    def forward(self, x):
        return self.c(self.b(self.a(x)))


class Owner(nn.Module):
    """A detector around it, whose children and parents lie in two parts."""

    def __init__(self):
        super().__init__()
        self.backbone, self.neck = Net(), Net()

    def forward(self, x):
        return self.neck(self.backbone(x))


ORDERS = [{'a': 'b'}, {'b': 'a'}, {'a': 'c', 'b': 'c'}]


def shared(plan=None, channels=8):
    return randomise(share_kernels(Net(channels), plan or {'a': 'b'})).eval()


def same_output(one, other):
    x = torch.randn(2, 8, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(one(x), other(x), rtol=0, atol=0)


def kernels(state, prefix=''):
    return [name for name in 'abc' if f'{prefix}{name}.weight' in state]


def through_pickle(net):
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


CARRIERS = dict(
    itself=lambda net: net,
    deepcopy=copy.deepcopy,
    pickle=lambda net: pickle.loads(pickle.dumps(net)),
    torch_save=through_pickle,
    half=lambda net: net.half().float(),
    double=lambda net: net.double().float(),
    to=lambda net: net.to('cpu', memory_format=torch.channels_last),
    ema=lambda net: ExponentialMovingAverage(net).module,
)


@pytest.mark.parametrize('plan', ORDERS)
@pytest.mark.parametrize('carrier', CARRIERS)
def test_one_entry_and_ties_wherever_the_net_goes(plan, carrier):
    net = CARRIERS[carrier](shared(plan))
    owners = [name for name in 'abc' if name not in plan]
    assert kernels(net.state_dict()) == kernels(get_state_dict(net)) == owners
    assert kernels(nn.Sequential(net).state_dict(prefix='x.'), 'x.0.') == owners
    assert {tie.path: tie.parent for tie in find_ties(net)} == plan
    fresh = shared(plan)
    fresh.load_state_dict(net.state_dict(), strict=True)
    assert {tie.path: tie.parent for tie in find_ties(fresh)} == plan
    same_output(fresh, net)


@pytest.mark.parametrize('plan', ORDERS)
@pytest.mark.parametrize('wrap', [lambda net: net, nn.Sequential])
def test_assigning_a_state_dict_keeps_kernel_and_tie(plan, wrap):
    source, target = wrap(shared(plan)), wrap(shared(plan))
    target.load_state_dict(source.state_dict(), strict=True, assign=True)
    assert len(find_ties(target)) == len(plan)
    same_output(target, source)
    with torch.device('meta'):
        target = wrap(share_kernels(Net(), plan)).eval()
    target.load_state_dict(source.state_dict(), strict=True, assign=True)
    assert len(find_ties(target)) == len(plan)
    same_output(target, source)


def test_assigning_keeps_frozen_kernels_frozen():
    source, target = shared(), shared()
    target.b.weight.requires_grad_(False)
    target.load_state_dict(source.state_dict(), assign=True)
    assert not target.a.weight.requires_grad and target.c.weight.requires_grad


@pytest.mark.parametrize('plan', ORDERS)
def test_empty_kernels_are_tied_again(plan):
    source = shared(plan)
    with torch.device('meta'):
        target = share_kernels(Net(), plan).eval()
    target = copy.deepcopy(target).to_empty(device='cpu')
    assert len(find_ties(target)) == len(plan)
    target.load_state_dict(source.state_dict(), strict=True)
    same_output(target, source)
    there = shared(plan).to('meta')
    assert len(find_ties(there)) == len(plan) and there.a.weight.is_meta


def test_ways_to_and_from_meta_leave_an_own_kernel_alone():
    net = shared({'a': 'b'})
    net.a.weight = nn.Parameter(net.a.weight.detach() * 2)
    net = net.to('meta')
    assert net.a.weight is not net.b.weight and net.a.weight.is_meta and net.b.weight.is_meta


@pytest.mark.parametrize('keep', [False, True])
def test_a_child_whose_parent_was_replaced_owns_its_kernel(keep):
    """Whether or not someone still holds the old parent."""
    net, frozen = shared(), []
    before = net.b.weight.detach().clone()
    if keep:
        frozen.append(net.b)
    net.b = nn.Conv2d(8, 8, 3, padding=1, bias=False)
    state = net.state_dict()
    assert torch.equal(state['a.weight'], before) and not find_ties(net)
    assert deployed_params(net) == 3 * before.numel() + sum(p.numel() for p in net.a.gate.parameters())
    target = shared()
    target.b = nn.Conv2d(8, 8, 3, padding=1, bias=False)
    target.load_state_dict(state, strict=True)
    same_output(target, net)
    del state['a.weight']
    with pytest.raises(RuntimeError, match='Missing key.*a.weight'):
        target.load_state_dict(state, strict=True)


def test_a_part_without_the_parent_saves_and_loads_whole():
    net = randomise(KDNAResNet(50, base_channels=8)).eval()
    part, other = net.layer3[1], randomise(KDNAResNet(50, base_channels=8)).eval().layer3[1]
    assert 'conv2.weight' in part.state_dict()
    other.load_state_dict(part.state_dict(), strict=True)
    x = torch.randn(1, 128, 4, 4)
    torch.testing.assert_close(other(x), part(x), rtol=0, atol=0)


@pytest.mark.parametrize('wrap', [lambda net: net, lambda net: nn.ModuleDict(dict(m=net))])
def test_nested_plans_outer_then_inner(wrap):
    """The inner plan, which does not see the outer's child, turns the outer's parent into a child."""

    def build():
        net = share_kernels(Owner(), {'backbone.a': 'neck.a', 'backbone.b': 'backbone.c'})
        share_kernels(net.neck, {'a': 'c'})
        return randomise(net).eval()

    source, target = build(), build()
    state = wrap(source).state_dict()
    prefix = 'm.' if 'm.neck.c.weight' in state else ''
    assert f'{prefix}backbone.a.weight' in state and f'{prefix}neck.a.weight' not in state
    assert f'{prefix}backbone.b.weight' not in state
    wrap(target).load_state_dict(state, strict=True)
    same_output(target, source)
    same_output(copy.deepcopy(target), source)


def test_nested_plans_inner_then_outer():
    def build():
        net = Owner()
        share_kernels(net.neck, {'a': 'c'})
        return randomise(share_kernels(net, {'backbone.a': 'neck.c'})).eval()

    source, target = build(), build()
    assert {tie.path: tie.parent for tie in find_ties(source)} == {'backbone.a': 'neck.c', 'neck.a': 'neck.c'}
    target.load_state_dict(source.state_dict(), strict=True)
    mmengine_load(target, get_state_dict(source), strict=True)
    same_output(target, source)


def test_a_file_without_the_owners_entry():
    net, target = shared(), shared()
    kernel = target.b.weight.detach().clone()
    state = net.state_dict()
    state['a.weight'] = state.pop('b.weight')
    with pytest.raises(RuntimeError, match='(?s)Missing key.*"b.weight".*Unexpected key.*"a.weight"'):
        target.load_state_dict(state)
    for load in (lambda: target.load_state_dict(state, strict=False), lambda: mmengine_load(target, state)):
        load()
        assert torch.equal(target.a.weight, kernel) and target.a.tied


def test_a_file_that_holds_the_kernel_twice():
    net, target = shared(), shared()
    target.load_state_dict(dict(net.state_dict(), **{'a.weight': net.b.weight}), strict=True)
    same_output(target, net)


def test_a_kernel_of_another_shape_is_reported_once():
    with pytest.raises(RuntimeError) as error:
        shared().load_state_dict(shared(channels=16).state_dict())
    assert 'size mismatch for b.weight' in str(error.value) and 'size mismatch for a.weight' not in str(error.value)


MAKERS = dict(
    prune=(lambda conv: prune.l1_unstructured(conv, 'weight', 0.5), lambda conv: prune.remove(conv, 'weight')),
    spectral_norm=(parametrizations.spectral_norm, lambda conv: parametrize.remove_parametrizations(conv, 'weight')),
    old_spectral_norm=(nn.utils.spectral_norm, None),
    weight_norm=(parametrizations.weight_norm, None),
)


@pytest.mark.parametrize('kind', MAKERS)
def test_a_parent_whose_kernel_is_computed_is_refused_in_the_next_forward(kind):
    make, undo = MAKERS[kind]
    net = shared().train()
    make(net.b)
    with pytest.raises(UsageError, match='computes its kernel at run time.*borrow: make it permanent'):
        net(torch.randn(2, 8, 6, 6))
    if undo:
        undo(net.b)
        net(torch.randn(2, 8, 6, 6))
        assert net.a.tied and net.a.weight is net.b.weight


def test_a_conv_whose_kernel_is_computed_cannot_become_a_parent():
    net = Net()
    prune.l1_unstructured(net.b, 'weight', 0.5)
    with pytest.raises(SharingPlanError, match='b computes its kernel at run time'):
        share_kernels(net, {'a': 'b'})
    assert type(net.a) is nn.Conv2d


def several_places():
    """One conv in three places, as in heads that share convs over levels."""
    levels = nn.ModuleList(
        nn.ModuleList(ConvModule(16, 16, 3, padding=1, norm_cfg=dict(type='BN')) for _ in range(2)) for _ in range(3)
    )
    for level in levels[1:]:
        for block, first in zip(level, levels[0]):
            block.conv = first.conv
    return levels


@pytest.mark.parametrize('plan', ['auto', {'0.0.conv': '0.1.conv'}, {'2.0.conv': '1.1.conv'}])
def test_a_conv_in_several_places_becomes_a_child_in_all(plan):
    net = several_places()
    if plan == 'auto':
        plan = dict(type='auto', min_kernel_params=1, across_stages=True, pattern='SF')
    kernel = net[0][0].conv.weight.numel()
    before = sum(p.numel() for p in net.parameters())
    share_kernels(net, plan)
    child = net[0][0].conv
    assert isinstance(child, ChildConv2d) and all(level[0].conv is child for level in net)
    assert all(level[1].conv is child.parent for level in net)
    assert sum(p.numel() for p in net.parameters()) == before - kernel + child.own_size()
    state = net.state_dict()
    assert not any(f'{i}.0.conv.weight' in state for i in range(3)) and all(f'{i}.1.conv.weight' in state for i in range(3))
    share_kernels(other := several_places(), {'0.0.conv': '0.1.conv'})
    other.load_state_dict(state, strict=True)


@pytest.mark.parametrize(
    'plan',
    [
        {'0.0.conv': '0.1.conv', '1.0.conv': '0.1.conv'},
        {'0.0.conv': '1.0.conv'},
        {'0.0.conv': '0.1.conv', '2.1.conv': '1.0.conv'},
    ],
)
def test_a_plan_names_a_conv_once(plan):
    net = several_places()
    with pytest.raises(SharingPlanError, match=r'are one conv, which hangs in both places'):
        share_kernels(net, plan)
    assert not any(isinstance(m, ChildConv2d) for m in net.modules())


def test_rtmdets_head_with_shared_convs_saves_what_it_says():
    from mmdet.models.dense_heads import RTMDetSepBNHead
    from mmengine.registry import init_default_scope

    init_default_scope('mmdet')
    head = RTMDetSepBNHead(
        num_classes=3,
        in_channels=32,
        feat_channels=32,
        share_conv=True,
        pred_kernel_size=1,
        anchor_generator=dict(type='MlvlPointGenerator', offset=0, strides=[8, 16, 32]),
        bbox_coder=dict(type='DistancePointBBoxCoder'),
        loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True),
        loss_bbox=dict(type='GIoULoss'),
    )
    before = sum(p.numel() for p in head.parameters())
    share_kernels(head, 'auto')
    children = {m for m in head.modules() if isinstance(m, ChildConv2d)}
    saved = sum(child.weight.numel() - child.own_size() for child in children)
    assert len(children) == 4 and saved > 0
    assert sum(p.numel() for p in head.parameters()) == before - saved
    scores, boxes = head([torch.randn(2, 32, s, s) for s in (8, 4, 2)])
    assert scores[2].shape == (2, 3, 2, 2) and boxes[0].shape == (2, 4, 8, 8)

import pytest
import torch
from torch import nn

from mmkerneldna.layers import ChildConv2d
from mmkerneldna.sharing import PLANS, Borrowing, SharingPlan, SharingPlanError, get_plan, share_kernels


@pytest.mark.parametrize(
    'mapping, message',
    [
        ({'a': 'a'}, "a can't borrow from itself"),
        ({'a': 'b', 'b': 'c'}, 'b is a child and a parent'),
        ({'a': 'b', 'b': 'a'}, 'is a child and a parent'),
    ],
)
def test_impossible_plans(mapping, message):
    with pytest.raises(SharingPlanError, match=message):
        SharingPlan.from_mapping(mapping)


def test_child_listed_twice():
    with pytest.raises(SharingPlanError, match='a is listed as a child twice'):
        SharingPlan((Borrowing('a', 'b'), Borrowing('a', 'c')))


def test_tree_lists_each_parent_with_its_children():
    plan = SharingPlan.from_mapping({'x.0': 'x.2', 'x.1': 'x.2', 'y.0': 'y.1'}, name='mine')
    assert str(plan).splitlines() == [
        "sharing plan 'mine': 3 children, 2 parents",
        'x.2',
        '├── x.0 (reduction 4)',
        '└── x.1 (reduction 4)',
        'y.1',
        '└── y.0 (reduction 4)',
    ]


def test_description_counts_what_sharing_really_saves():
    net = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    plan = SharingPlan.from_mapping({'0': '2', '1': '2'})
    before = sum(p.numel() for p in net.parameters())
    text = plan.describe(net)
    share_kernels(net, plan)
    after = sum(p.numel() for p in net.parameters())
    assert plan.describe(net) == text
    assert text.endswith(f'net {before - after:,}')
    assert '2  kernel (8, 8, 3, 3)' in text and 'saves 576' in text


def test_prefix_moves_a_plan_to_the_owner():
    owner = nn.Module()
    owner.backbone = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    share_kernels(owner, SharingPlan.from_mapping({'0': '1'}).prefixed('backbone.'))
    assert isinstance(owner.backbone[0], ChildConv2d)
    assert torch.is_tensor(owner.backbone(torch.rand(1, 4, 8, 8)))


def test_within_keeps_whole_pairs_only():
    plan = SharingPlan.from_mapping({'a.0': 'a.1', 'b.0': 'b.1', 'c.0': 'a.2'})
    assert plan.within(['a']).children == {'a.0': 'a.1'}
    assert plan.within(['a', 'c']).children == {'a.0': 'a.1', 'c.0': 'a.2'}


def test_unknown_name_lists_the_nearest():
    with pytest.raises(SharingPlanError, match="no sharing plan is named 'resnet-18'; did you mean .*'resnet18'"):
        get_plan('resnet-18')


# Facts of DESIGN.md's table, which states them as read from the released code.
PAPER = {
    'resnet18': {
        f'layer{s}.{c}': f'layer{s}.{p}'
        for s in (3, 4)
        for c, p in (('0.conv2', '1.conv2'), ('1.conv1', '1.conv2'), ('2.conv1', '2.conv2'))
    },
    'resnet50': {
        'layer3.1.conv2': 'layer3.2.conv2',
        'layer3.3.conv2': 'layer3.4.conv2',
        'layer3.5.conv2': 'layer3.6.conv2',
        'layer4.1.conv2': 'layer4.2.conv2',
    },
}


@pytest.mark.parametrize('name', PAPER)
def test_paper_tables(name):
    assert PLANS[name].children == PAPER[name]
    assert {b.reduction for b in PLANS[name].borrowings} == {4}


def test_mobilenet_table():
    plan = PLANS['mobilenet_v2']
    assert len(plan) == 10
    assert plan.children['layer4.2.linear_conv.conv'] == 'layer4.3.linear_conv.conv'
    for b in plan.borrowings:
        assert b.reduction == (4 if 'expand' in b.child else 24)

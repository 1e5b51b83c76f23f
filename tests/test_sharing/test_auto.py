import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmkerneldna.sharing import SharingPlanError, auto_plan, share_kernels


def row(count, channels=16, kernel=3, **kwargs):
    return nn.Sequential(*(nn.Conv2d(channels, channels, kernel, padding=kernel // 2, **kwargs) for _ in range(count)))


@pytest.mark.parametrize(
    'pattern, expected',
    [
        ('FS', {'1': '2', '3': '4', '5': '4'}),
        ('SF', {'0': '1', '2': '3', '4': '5'}),
        ('S*F', {'0': '5', '1': '5', '2': '5', '3': '5', '4': '5'}),
        ('FS*F', {'1': '5', '2': '5', '3': '5', '4': '5'}),
        ('FS*', {'1': '0', '2': '0', '3': '0', '4': '0', '5': '0'}),
        ('FF', None),
    ],
)
def test_patterns(pattern, expected):
    net = row(6)
    if expected is None:
        with pytest.raises(SharingPlanError, match='nothing to share'):
            auto_plan(net, pattern, min_kernel_params=1)
    else:
        assert auto_plan(net, pattern, min_kernel_params=1, across_stages=True).children == expected


@pytest.mark.parametrize('pattern', ['', 'S', 'S*', 'F*', 'S*F*', 'FX', '*F', 's*f'])
def test_malformed_patterns(pattern):
    with pytest.raises(SharingPlanError, match='must be letters F'):
        auto_plan(row(4), pattern, min_kernel_params=1)


def test_stages_are_apart_unless_asked():
    net = nn.ModuleDict({'layer1': nn.ModuleList(row(2)), 'layer2': nn.ModuleList(row(2))})
    assert auto_plan(net, 'SF', min_kernel_params=1).children == {'layer1.0': 'layer1.1', 'layer2.0': 'layer2.1'}
    crossed = auto_plan(net, 'S*F', min_kernel_params=1, across_stages=True).children
    assert set(crossed.values()) == {'layer2.1'} and len(crossed) == 3
    assert auto_plan(net, 'SF', stages=['layer2'], min_kernel_params=1).children == {'layer2.0': 'layer2.1'}


def test_unknown_stage_names_the_known():
    net = nn.ModuleDict({'layer1': nn.ModuleList(row(2))})
    with pytest.raises(SharingPlanError, match="stage 'layer9' is not in ModuleDict; stages with convs: layer1"):
        auto_plan(net, stages=['layer9'])


def test_smallest_kernel_and_kernel_sizes():
    net = nn.ModuleDict({'a': nn.ModuleList(row(2)), 'b': nn.ModuleList(row(2, 32)), 'c': nn.ModuleList(row(2, 64, 1))})
    assert set(auto_plan(net, 'SF', min_kernel_params=9000).children) == {'b.0'}
    assert set(auto_plan(net, 'SF', kernel_sizes=(1,), min_kernel_params=1, reduction=16).children) == {'c.0'}


def test_kernels_that_cost_more_to_adapt_than_they_save_stay():
    # A depthwise 3x3 kernel has 9 parameters a channel, its gate would have C / 2.
    with pytest.raises(SharingPlanError, match='nothing to share'):
        auto_plan(row(4, 64, groups=64), 'SF', min_kernel_params=1)


def test_a_dense_head_of_upstream_shares():
    from mmdet.models.dense_heads import RetinaHead

    head = RetinaHead(num_classes=3, in_channels=32, feat_channels=32, stacked_convs=4)
    plan = auto_plan(head, 'S*F')
    assert set(plan.children.values()) == {'cls_convs.3.conv', 'reg_convs.3.conv'} and len(plan) == 6


@settings(max_examples=40, deadline=None)
@given(
    pattern=st.from_regex(r'[FS]{0,3}([FS]\*)?[FS]{0,2}F', fullmatch=True),
    counts=st.lists(st.integers(1, 5), min_size=1, max_size=3),
)
def test_any_plan_applies(pattern, counts):
    net = nn.ModuleList(nn.ModuleDict({f'stage{i}': nn.ModuleList(row(n))}) for i, n in enumerate(counts))
    try:
        plan = auto_plan(net, pattern, min_kernel_params=1)
    except SharingPlanError as error:
        assert 'nothing to share' in str(error)
        return
    share_kernels(net, plan)
    for child, parent in plan.children.items():
        assert net.get_submodule(child).weight is net.get_submodule(parent).weight
        assert net.get_submodule(child)(torch.rand(1, 16, 4, 4)).shape == (1, 16, 4, 4)

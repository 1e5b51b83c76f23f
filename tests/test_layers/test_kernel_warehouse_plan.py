import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.models import MobileNetV2, ResNet
from mmseg.models import MobileNetV2 as SegMobileNetV2
from torch import nn

from mmkerneldna.layers.kernel_warehouse_plan import group_convs, plan_warehouse, value_for


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_every_element_belongs_to_one_mixture_and_every_cell_to_one_layer(data):
    unit_out, unit_in = data.draw(st.sampled_from([4, 6, 8])), data.draw(st.sampled_from([2, 4]))
    shapes = {
        f'layer{i}': (unit_out * data.draw(st.integers(1, 3)), unit_in * data.draw(st.integers(1, 3)), k, k)
        for i, k in enumerate(data.draw(st.lists(st.sampled_from([1, 3]), min_size=1, max_size=4)))
    }
    budget = data.draw(st.sampled_from([1, 2, 4, 0.5, 0.25]))
    plan = plan_warehouse(shapes, budget, *((0.5, 0.5) if budget < 1 else (1, 1)))
    c_out, c_in = plan.cell_shape[:2]
    used, start = [], 0
    for path, layer in plan.layers.items():
        out, ins, k, _ = shapes[path]
        assert layer.num_mixtures * c_out * c_in == out * ins * k * k
        assert layer.owned == layer.num_mixtures * budget and layer.start == start
        start += layer.owned
        assert len(layer.assignment) == layer.num_mixtures
        used += [cell for cell in layer.assignment if cell < plan.num_cells]
    assert start == plan.num_cells
    # a budget of b >= 1 has b cells per mixture, of which the first is the one it starts from
    assert used == list(range(0, plan.num_cells, max(int(budget), 1)))


def test_half_a_budget_leaves_every_other_mixture_without_a_cell():
    assert plan_warehouse({'a': (4, 4, 1, 1)}, 0.5, 0.5, 0.5).layers['a'].assignment == (0, 2, 2, 1)


def convs_of(net):
    return {path: m for path, m in net.named_modules() if isinstance(m, nn.Conv2d)}


def test_resnet_groups_follow_the_authors():
    groups = group_convs({path: conv for path, conv in convs_of(ResNet(50)).items() if path.startswith('layer')})
    assert list(groups) == ['layer1', 'layer2', 'layer3', 'layer4']
    assert groups['layer2'][0] == 'layer2.0.conv2'
    assert groups['layer2'][-2:] == ['layer3.0.conv1', 'layer3.0.downsample.0']
    assert [len(paths) for paths in groups.values()] == [12, 13, 19, 8]


def test_mobilenet_groups_follow_the_authors():
    groups = group_convs(convs_of(MobileNetV2()))
    assert len(groups) == 13 and groups['conv1'] == ['conv1.conv']
    assert groups['layer1.depthwise'] == ['layer1.0.depthwise_conv.conv', 'layer2.0.depthwise_conv.conv']
    assert groups['layer6'] == [
        'layer6.1.expand_conv.conv',
        'layer6.1.linear_conv.conv',
        'layer6.2.expand_conv.conv',
        'layer6.2.linear_conv.conv',
        'layer7.0.expand_conv.conv',
        'layer7.0.linear_conv.conv',
        'conv2.conv',
    ]
    by_role = group_convs(convs_of(MobileNetV2()), 'role')
    assert len(by_role) == 19 and by_role['layer6.linear_conv'][-1] == 'conv2.conv'


def test_groups_of_mmsegs_mobilenet_are_those_of_mmdets_without_the_last_convolution():
    nets = [MobileNetV2(), SegMobileNetV2()]
    det, seg = (
        [
            sorted(convs_of(net)[path].weight.shape for path in paths if path != 'conv2.conv')
            for paths in group_convs(convs_of(net), 'role').values()
        ]
        for net in nets
    )
    assert det == seg


def test_stages_of_a_detector_and_other_modules():
    convs = {
        path: nn.Conv2d(8, 8, 3)
        for path in (
            'backbone.layer1.0.conv2',
            'backbone.layer2.0.conv1',
            'neck.lateral_convs.0.conv',
            'neck.lateral_convs.1.conv',
            'head.cls',
        )
    }
    assert list(group_convs(convs).values()) == [
        ['backbone.layer1.0.conv2', 'backbone.layer2.0.conv1'],
        ['neck.lateral_convs.0.conv', 'neck.lateral_convs.1.conv'],
        ['head.cls'],
    ]
    assert len(group_convs(convs, 'layer')) == 5


def test_values_by_pattern():
    assert value_for({'layer6.*': 0.5, '*': 1}, 'layer6.expand_conv', 'budget') == 0.5
    assert value_for(4, 'layer1', 'budget') == 4
    with pytest.raises(ValueError, match="budget=.* has no pattern for the warehouse 'layer1'; add"):
        value_for({'layer6': 1}, 'layer1', 'budget')


@pytest.mark.parametrize(
    'shapes, options, message',
    [
        ({'a': (8, 8, 3, 3)}, dict(budget=0), 'budget=0 must be a whole number'),
        ({'a': (8, 8, 3, 3)}, dict(budget=1.5), 'budget=1.5 must be a whole number'),
        ({'a': (8, 8, 3, 3)}, dict(budget=0.3), 'budget=0.3'),
        ({'a': (8, 8, 3, 3)}, dict(budget=0.5), 'needs 2 mixtures per cell, but the kernel of a consists of 9'),
        ({'a': (8, 6, 1, 1)}, dict(cell_in_ratio=0.7), 'cells of 4 channels, which do not divide the 6'),
        ({'a': (8, 8, 1, 1)}, dict(cell_out_ratio=-1), 'cell_out_ratio=-1 must be positive'),
        ({'a': (64, 64, 3, 3), 'b': (64, 64, 3, 3), 'odd': (63, 61, 1, 1)}, {}, r'3 layers .* odd \(63, 61, 1, 1\) has least'),
        ({'alone': (64, 64, 3, 3)}, dict(cell_in_ratio=0.01, cell_out_ratio=0.01), 'it is the only one'),
    ],
)
def test_refuses(shapes, options, message):
    with pytest.raises(ValueError, match=message):
        plan_warehouse(shapes, **options)


def test_unknown_sharing():
    with pytest.raises(ValueError, match="sharing='net' must be one of 'stage', 'role', 'layer'"):
        group_convs({}, 'net')

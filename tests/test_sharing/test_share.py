import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.registry import MODELS
from torch import nn

from mmkerneldna.layers import ChildConv2d
from mmkerneldna.sharing import SharingPlan, SharingPlanError, share_kernels


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(4, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.wide = nn.Conv2d(4, 8, 3, padding=1)
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.transposed = nn.ConvTranspose2d(4, 4, 3, padding=1)
        self.block = ConvModule(4, 4, 3, padding=1, norm_cfg=dict(type='BN'))

    def forward(self, x):
        return self.block(self.b(self.a(x)))


@pytest.mark.parametrize(
    'plan, message',
    [
        ({'nowhere': 'b'}, 'Net has no nowhere; nearest convs: '),
        ({'a': 'block.con'}, 'Net has no block.con; nearest convs: block.conv'),
        ({'a': 'wide'}, r'a has a kernel \(4, 4, 3, 3\) in 1 group.*wide one of \(8, 4, 3, 3\).*same out_channels'),
        ({'a': 'grouped'}, r'\(4, 2, 3, 3\) in 2'),
        ({'a': 'transposed'}, 'transposed is a ConvTranspose2d; only a plain Conv2d'),
        ({'a': 'block'}, 'block is a ConvModule'),
        ('resnet18x', "no sharing plan is named 'resnet18x'"),
        (['a', 'b'], 'a plan is a SharingPlan'),
        (dict(type='automatic'), "must be 'auto' or 'redundancy', got 'automatic'"),
        (dict(type='auto', patern='FS'), 'patern'),
        (SharingPlan.from_mapping({'a': 'b'}, reduction=5), 'reduction=5 of a must lie between 1 and its 4'),
        ({'b': 'a', 'a': 'block.conv'}, 'a is a child and a parent'),
    ],
)
def test_a_plan_that_does_not_fit_changes_nothing(plan, message):
    net = Net()
    before = {name: id(m) for name, m in net.named_modules()}
    with pytest.raises(SharingPlanError, match=message):
        share_kernels(net, plan)
    assert {name: id(m) for name, m in net.named_modules()} == before


def test_a_bad_second_entry_leaves_the_first_alone():
    net = Net()
    with pytest.raises(SharingPlanError):
        share_kernels(net, {'a': 'b', 'block.conv': 'wide'})
    assert type(net.a) is nn.Conv2d


def test_children_keep_bias_and_place():
    net, x = Net().eval(), torch.rand(2, 4, 6, 6)
    bias = net.a.bias
    assert share_kernels(net, {'a': 'block.conv'}) is net
    assert net.a.bias is bias and net.a.weight is net.block.conv.weight
    gated = x * net.a.gate(x)
    torch.testing.assert_close(net.a(x), nn.functional.conv2d(gated, net.block.conv.weight, bias, padding=1))


def test_sharing_twice_is_refused():
    net = share_kernels(Net(), {'a': 'b'})
    with pytest.raises(SharingPlanError, match='a borrows its kernel already'):
        share_kernels(net, {'a': 'block.conv'})
    with pytest.raises(SharingPlanError, match='b is the parent of a conv that shares already'):
        share_kernels(net, {'b': 'block.conv'})


def test_gate_cfg_overrides_the_plan():
    net = share_kernels(Net(), {'a': 'b'}, gate_cfg=dict(reduction=2, norm_cfg=None))
    assert net.a.gate.fc1.out_channels == 2 and isinstance(net.a.gate.norm, nn.Identity)
    with pytest.raises(SharingPlanError, match="'reduction' and 'norm_cfg', got.*ratio"):
        share_kernels(Net(), {'a': 'b'}, gate_cfg=dict(ratio=2))


def test_registered_function_returns_the_inner_module():
    from mmdet.models.necks import FPN

    neck = MODELS.build(
        dict(
            type='KernelDNA',
            module=dict(type='mmdet.FPN', in_channels=[8, 16], out_channels=32, num_outs=3),
            plan=dict(type='auto', pattern='S*F'),
        )
    )
    assert type(neck) is FPN
    assert isinstance(neck.fpn_convs[0].conv, ChildConv2d)
    assert not any(key.startswith('module.') for key in neck.state_dict())
    shapes = [tuple(o.shape) for o in neck([torch.rand(1, 8, 16, 16), torch.rand(1, 16, 8, 8)])]
    assert shapes == [(1, 32, 16, 16), (1, 32, 8, 8), (1, 32, 4, 4)]


def test_injected_arguments_reach_the_inner_module():
    head = MODELS.build(
        dict(
            type='KernelDNA',
            plan='auto',
            num_classes=3,
            test_cfg=dict(nms_pre=7),
            module=dict(type='mmdet.RetinaHead', in_channels=32, feat_channels=32),
        )
    )
    assert head.num_classes == 3 and head.test_cfg['nms_pre'] == 7
    assert any(isinstance(m, ChildConv2d) for m in head.modules())


def test_inner_module_must_be_a_config():
    with pytest.raises(TypeError, match="module must be a config dict with a 'type', got 'FPN'"):
        MODELS.build(dict(type='KernelDNA', module='FPN'))


def test_whole_detector_and_segmenter_heads_share():
    from mmengine.registry import init_default_scope

    init_default_scope('mmseg')
    head = MODELS.build(
        dict(
            type='KernelDNA',
            plan=dict(type='auto', pattern='S*F'),
            module=dict(
                type='UPerHead',
                in_channels=[8, 8, 8, 8],
                in_index=[0, 1, 2, 3],
                channels=32,
                num_classes=5,
                norm_cfg=dict(type='BN'),
            ),
        )
    )
    assert isinstance(head.fpn_convs[0].conv, ChildConv2d)
    features = [torch.rand(2, 8, 32 // 2**i, 32 // 2**i) for i in range(4)]
    assert head(features).shape == (2, 5, 32, 32)

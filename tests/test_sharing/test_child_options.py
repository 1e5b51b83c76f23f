"""``residual_rank`` and ``spatial_scale`` from every place that takes them."""

import pytest
import torch
from helpers import randomise
from mmengine.registry import MODELS
from torch import nn

from mmkerneldna.deploy import deploy
from mmkerneldna.layers import ChildConv2d
from mmkerneldna.measure.complexity import deployed_params
from mmkerneldna.sharing import Borrowing, SharingPlan, SharingPlanError, auto_plan, share_kernels


def row(count=3, channels=16):
    return nn.Sequential(*(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(count)))


def children(net):
    return [m for m in net.modules() if isinstance(m, ChildConv2d)]


FPN = dict(type='mmdet.FPN', in_channels=[8, 16], out_channels=32, num_outs=2)
OPTIONS = dict(residual_rank=5, spatial_scale=False)


@pytest.mark.parametrize(
    'build',
    [
        lambda: share_kernels(row(), {'0': '1'}, **OPTIONS),
        lambda: share_kernels(row(), SharingPlan.from_mapping({'0': '1'}).with_residual_rank(5).with_spatial_scale(False)),
        lambda: share_kernels(row(), SharingPlan((Borrowing('0', '1', 4, **OPTIONS),))),
        lambda: share_kernels(row(), dict(type='auto', min_kernel_params=1, across_stages=True, **OPTIONS)),
        lambda: MODELS.build(dict(type='KernelDNA', module=FPN, plan=dict(type='auto', pattern='S*F', **OPTIONS))),
        lambda: MODELS.build(dict(type='KernelDNA', module=FPN, **OPTIONS)),
        lambda: MODELS.build(dict(type='KDNAResNet', depth=18, base_channels=8, gate_cfg=dict(reduction=8), **OPTIONS)),
        lambda: MODELS.build(dict(type='KDNAResNet', depth=18, base_channels=8, sharing=dict(type='auto', **OPTIONS))),
    ],
)
def test_reach_every_child(build):
    found = children(build())
    assert found
    for child in found:
        assert child.residual_b.shape[1] == 5 and child.spatial_scale is None


def test_reach_the_1x1_children_of_mobilenet():
    net = MODELS.build(dict(type='KDNAMobileNetV2', widen_factor=0.5, residual_rank=5))
    assert all(child.residual_a.shape == (5, child.in_channels) for child in children(net))


def test_arguments_override_the_plan():
    plan = SharingPlan.from_mapping({'0': '1'}).with_residual_rank(5)
    assert children(share_kernels(row(), plan, residual_rank=0))[0].residual_b is None
    assert children(share_kernels(row(), plan.with_spatial_scale(False), spatial_scale=True))[0].spatial_scale is not None


@pytest.mark.parametrize('rank', [-1, 17])
def test_a_rank_that_no_kernel_has_changes_nothing(rank):
    net = row()
    with pytest.raises(SharingPlanError, match=f'residual_rank={rank} of 0 must lie between 0 and 16'):
        share_kernels(net, {'0': '1'}, residual_rank=rank)
    assert not children(net)


@pytest.mark.parametrize('options', [OPTIONS, dict(residual_rank=2), dict(spatial_scale=False)])
def test_description_counts_them(options):
    net = row()
    plan = SharingPlan((Borrowing('0', '2', **options), Borrowing('1', '2')))
    before, text = sum(p.numel() for p in net.parameters()), plan.describe(net)
    share_kernels(net, plan)
    after = sum(p.numel() for p in net.parameters())
    assert plan.describe(net) == text and text.endswith(f'net {before - after:,}')
    assert ('residual rank' in text) == ('residual_rank' in options)
    assert ('no spatial scale' in text) == ('spatial_scale' in options)


def test_the_automatic_policy_weighs_the_residual():
    assert auto_plan(row(), min_kernel_params=1, across_stages=True, residual_rank=8)
    with pytest.raises(SharingPlanError, match='nothing to share.*lower residual_rank'):
        auto_plan(row(), min_kernel_params=1, across_stages=True, residual_rank=16)


@torch.no_grad()
def test_deployed_it_is_gone():
    config = dict(type='KDNAResNet', depth=18, base_channels=8)
    net, plain = randomise(MODELS.build(dict(residual_rank=4, **config))).eval(), MODELS.build(config)
    assert deployed_params(net) == deployed_params(plain)
    x = torch.randn(1, 3, 64, 64)
    copy = deploy(net)
    assert not any('residual' in name for name in copy.state_dict())
    for ours, theirs in zip(copy(x), net(x)):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()

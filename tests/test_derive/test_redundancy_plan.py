"""Plans of least predicted damage: budgets are kept, choices are the best ones, and what can't be is one error."""

import re
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.registry import MODELS
from mmseg.models.backbones.resnet import ResNet
from torch import nn

from mmkerneldna.backbones import KDNAResNet
from mmkerneldna.derive import DeriveError, measure_redundancy, redundancy_plan
from mmkerneldna.derive.redundancy import Pair, Redundancy
from mmkerneldna.derive.redundancy_plan import _ladder, cheapest
from mmkerneldna.modules import count_parameters
from mmkerneldna.sharing import SharingPlan, SharingPlanError, resolve_plan, share_kernels
from tests.helpers import randomise

NARROW = dict(depth=18, base_channels=16, stem_channels=16)


def trained():
    torch.manual_seed(0)
    net = randomise(ResNet(**NARROW))
    net.eval()
    return net


@pytest.fixture(scope='module')
def net():
    return trained()


@pytest.fixture(scope='module')
def measured(net):
    return measure_redundancy(net)


@settings(max_examples=15, deadline=None)
@given(st.floats(0.05, 0.99), st.sampled_from([4, 16]), st.sampled_from([0, 2]), st.booleans())
def test_the_budget_is_kept_or_the_lowest_possible_is_said(net, measured, budget, reduction, residual_rank, spatial_scale):
    options = dict(reduction=reduction, residual_rank=residual_rank, spatial_scale=spatial_scale, redundancy=measured)
    try:
        plan = redundancy_plan(net, budget, **options)
    except SharingPlanError as error:
        lowest = float(re.search(r'the lowest that ResNet allows is (0\.\d+) ', str(error)).group(1))
        assert lowest > budget
        plan, budget = redundancy_plan(net, lowest, **options), lowest
    shared = share_kernels(trained(), plan)
    assert count_parameters(shared) <= budget * count_parameters(net)
    assert {b.reduction for b in plan.borrowings} == {reduction}


def test_the_equal_pair_is_shared_first():
    net = trained()
    with torch.no_grad():
        net.layer4[1].conv1.weight.copy_(net.layer4[0].conv2.weight * torch.randn(128, 1, 1, 1))
    assert redundancy_plan(net, 0.9).children in ({'layer4.0.conv2': 'layer4.1.conv1'}, {'layer4.1.conv1': 'layer4.0.conv2'})


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 5), st.integers(0, 2**31))
def test_a_ladder_holds_the_best_families(count, seed):
    table = torch.rand(count, count, generator=torch.Generator().manual_seed(seed)).tolist()
    paths = [str(i) for i in range(count)]
    ladder = _ladder(paths, 10, {(a, b): table[int(a)][int(b)] for a in paths for b in paths if a != b})
    best = [float('inf')] * count
    for lenders in product(range(count), repeat=count):  # i borrows from lenders[i], a parent from itself
        if all(lenders[lender] == lender for lender in lenders):
            children = [i for i in range(count) if lenders[i] != i]
            best[len(children)] = min(best[len(children)], sum(table[i][lenders[i]] for i in children))
    assert [choice.damage for choice in ladder] == pytest.approx(best)
    assert [choice.saved for choice in ladder] == [10 * k for k in range(count)]
    for choice in ladder:
        SharingPlan.from_mapping(choice.children)  # no child is a parent


def test_a_long_ladder_reaches_one_parent():
    paths = [str(i) for i in range(14)]
    ladder = _ladder(paths, 1, {(a, b): abs(int(a) - int(b)) for a in paths for b in paths if a != b})
    assert [len(choice.children) for choice in ladder] == list(range(14))
    assert len(set(ladder[-1].children.values())) == 1 and ladder[7].damage == 7


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60))
def test_the_choice_reaches_what_is_needed_near_the_best(seed, needed):
    draw = torch.Generator().manual_seed(seed)
    ladders = []
    for saving in (3, 7, 20):
        paths = [str(i) for i in range(3)]
        damage = {(a, b): float(torch.rand(1, generator=draw)) for a in paths for b in paths if a != b}
        ladders.append(_ladder(paths, saving, damage))
    chosen = cheapest(ladders, needed)
    assert sum(choice.saved for choice in chosen) >= needed
    best = min(sum(c.damage for c in every) for every in product(*ladders) if sum(c.saved for c in every) >= needed)
    assert sum(c.damage for c in chosen) <= best + max(c.damage for ladder in ladders for c in ladder)


def test_stages_keep_to_themselves_if_asked():
    module = nn.ModuleDict({f'layer{s}': nn.ModuleList(nn.Conv2d(64, 64, 3) for _ in range(2)) for s in (1, 2)})
    damage = Redundancy([Pair(a, b, float(a[:6] == b[:6])) for a in PATHS for b in PATHS if a != b])
    across = redundancy_plan(module, 0.6, redundancy=damage)
    within = redundancy_plan(module, 0.6, redundancy=damage, across_stages=False)
    assert all(c[:6] != p[:6] for c, p in across.children.items()) and len(across) == 2
    assert all(c[:6] == p[:6] for c, p in within.children.items()) and len(within) == 2


PATHS = [f'layer{s}.{i}' for s in (1, 2) for i in (0, 1)]


@pytest.mark.parametrize('budget', [0, 1, -0.5, 1.5, float('nan'), '0.5', True, None])
def test_a_budget_that_is_none(net, budget):
    with pytest.raises(SharingPlanError, match='must be a number between 0 and 1'):
        redundancy_plan(net, budget)


def test_the_policy_in_configs_reads_a_checkpoint(net, tmp_path):
    path = str(tmp_path / 'static.pth')
    torch.save(dict(state_dict={f'backbone.{key}': value for key, value in net.state_dict().items()}), path)
    policy = dict(type='redundancy', budget=0.6, checkpoint=path)
    built = MODELS.build(dict(type='KernelDNA', module=dict(type='mmseg.ResNet', **NARROW), plan=policy))
    expected = redundancy_plan(net, 0.6).children
    assert {p for p, m in built.named_modules() if type(m).__name__ == 'ChildConv2d'} == set(expected)
    assert count_parameters(built) <= 0.6 * count_parameters(net)
    assert resolve_plan(net, dict(type='redundancy', budget=0.6)).children == expected  # weights of its own
    with pytest.raises(SharingPlanError, match=r'would be identities\): for the same latency'):
        KDNAResNet(**NARROW, sharing=policy)  # two blocks deeper
    grown = KDNAResNet(**NARROW, sharing=dict(policy, grow=True, images=[torch.randn(1, 3, 64, 64)]))
    assert count_parameters(grown) <= 0.6 * count_parameters(KDNAResNet(**NARROW, sharing=None))


def test_a_policy_that_can_not_be_used():
    fresh = ResNet(**NARROW)
    with pytest.raises(SharingPlanError, match='have seen no image yet: name a dense checkpoint'):
        resolve_plan(fresh, dict(type='redundancy', budget=0.5))
    with pytest.raises(SharingPlanError, match=r"dict\(type='redundancy', ...\): got an unexpected keyword argument 'level'"):
        resolve_plan(fresh, dict(type='redundancy', budget=0.5, level=3))
    with pytest.raises(SharingPlanError, match=r"must be 'auto' or 'redundancy', got 'none'"):
        resolve_plan(fresh, dict(type='none'))
    with pytest.raises(DeriveError, match='of another family'):
        resolve_plan(fresh, dict(type='redundancy', budget=0.5, checkpoint={'a.weight': torch.ones(2)}))


def test_a_plan_as_plain_data_and_back(net):
    plan = redundancy_plan(net, 0.8, reduction=8, spatial_scale=False)
    assert SharingPlan.from_mapping(plan.to_mapping(), name=plan.name) == plan
    plain = redundancy_plan(net, 0.8)
    assert plain.to_mapping() == plain.children
    for value in (3, {}, dict(parent='a', colour=1), dict(reduction=2)):
        with pytest.raises(SharingPlanError, match='must have the path of its parent'):
            SharingPlan.from_mapping({'b': value})

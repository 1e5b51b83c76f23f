"""Where identity blocks go."""

from itertools import combinations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmkerneldna.backbones import KDNAResNet
from mmkerneldna.derive.dense import block_of
from mmkerneldna.derive.growth import Stack, approximated, free_parents, place_identities, source_blocks
from mmkerneldna.sharing.paper_plans import TABLES


def plan(name):
    return {f'layer{s}.{cb}.{cc}': f'layer{s}.{pb}.{pc}' for s, cb, cc, pb, pc, _ in TABLES[name]}


def test_resnet18_places_its_identities_at_block_1():
    net = KDNAResNet(18, sharing=None, base_channels=8)
    stacks = [Stack('layer3', 2, 3), Stack('layer4', 2, 3)]
    chosen = place_identities(stacks, net, net.state_dict(), plan('resnet18'))
    assert chosen == {'layer3.1', 'layer4.1'}
    assert approximated(plan('resnet18'), chosen) == ['layer3.2.conv1', 'layer4.2.conv1']


def test_among_equal_counts_the_weakest_branches_are_approximated():
    net = KDNAResNet(50, sharing=None, base_channels=8)
    state = {k: v for k, v in net.state_dict().items() if not k.startswith('layer3.6')}
    for block, size in enumerate([3.0, 2.0, 0.1, 3.0, 3.0, 0.1]):
        state[f'layer3.{block}.bn3.weight'] = torch.full((256,), size)
    (chosen,) = place_identities([Stack('layer3', 6, 7)], net, state, plan('resnet50'))
    position = int(chosen.split('.')[1])
    costs = {}
    for p in range(1, 7):
        rows = source_blocks(Stack('layer3', 6, 7), {f'layer3.{p}'})
        inside = [c for c in approximated(plan('resnet50'), {f'layer3.{p}'}) if c.startswith('layer3')]
        sizes = [3.0, 2.0, 0.1, 3.0, 3.0, 0.1]
        costs[p] = sum(sizes[rows[int(c.split('.')[1])]] ** 2 for c in inside)
    assert costs[position] == min(costs.values()) and len(set(costs.values())) > 1


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_is_not_approximated_is_exact_in_any_placement(data):
    blocks = data.draw(st.integers(2, 7))
    convs = [f'layer3.{b}.conv{c}' for b in range(blocks) for c in (1, 2)]
    owners = data.draw(st.sets(st.sampled_from(convs), min_size=1, max_size=4))
    children = [c for c in convs if c not in owners]
    parents = {c: data.draw(st.sampled_from(sorted(owners))) for c in children}
    identities = {f'layer3.{i}' for i in data.draw(st.sets(st.integers(0, blocks - 1), max_size=blocks - 1))}
    kernel = {c: c for c in convs}  # who owned the kernel that a conv needs
    held = {**{p: p for p in owners}, **free_parents(parents, identities)}
    wrong = [c for c, p in parents.items() if block_of(c) not in identities and held[p] != kernel[c]]
    assert sorted(approximated(parents, identities)) == sorted(wrong)


def test_greedy_placement_agrees_with_the_search_where_one_block_is_added(monkeypatch):
    net = KDNAResNet(50, sharing=None, base_channels=8)
    state = {k: v for k, v in net.state_dict().items() if not k.startswith('layer3.6')}
    full = place_identities([Stack('layer3', 6, 7)], net, state, plan('resnet50'))
    monkeypatch.setattr('mmkerneldna.derive.growth.MAX_PLACEMENTS', 0)
    assert place_identities([Stack('layer3', 6, 7)], net, state, plan('resnet50')) == full


def test_the_search_is_exhaustive():
    net = KDNAResNet(34, sharing=None, base_channels=8)
    state = {k: v for k, v in net.state_dict().items() if not k.startswith(('layer3.6', 'layer3.5'))}
    stack = Stack('layer3', 5, 7)
    chosen = place_identities([stack], net, state, plan('resnet34'))
    counts = [
        len([c for c in approximated(plan('resnet34'), {f'layer3.{i}' for i in p}) if 'layer3' in c])
        for p in combinations(range(1, 7), 2)
    ]
    assert len([c for c in approximated(plan('resnet34'), chosen) if 'layer3' in c]) == min(counts)

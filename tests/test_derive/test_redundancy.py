"""Redundancy against plain loops; a pair that is equal up to scale is found; CKA and shares against their definitions."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mmdet.models.necks import FPN
from mmseg.models.backbones.resnet import ResNet

from mmkerneldna.derive import DeriveError, measure_redundancy
from mmkerneldna.derive.branch_share import shares_by_norms
from mmkerneldna.derive.cka import LinearCKA
from mmkerneldna.derive.fit import closest
from mmkerneldna.derive.redundancy import rounds, unexplained
from mmkerneldna.sharing import SharingPlanError, share_kernels
from tests.helpers import randomise


def basic(**kwargs):
    torch.manual_seed(0)
    net = randomise(ResNet(18, base_channels=8, stem_channels=8, **kwargs))
    net.eval()
    return net


def images(count=2):
    torch.manual_seed(1)
    return [torch.randn(2, 3, 64, 64) for _ in range(count)]


def spoken(result):
    return {(pair.child, pair.parent): pair for pair in result.pairs}


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from([1, 3]), st.integers(0, 2**31))
@example(2, 1, 3, 1)  # converges slowly
def test_the_closest_scales_against_the_rank_one_problem(out_channels, in_channels, k, seed):
    """With one input channel and a parent of ones the best factors are the best rank-one matrix: its SVD."""
    draw = torch.Generator().manual_seed(seed)
    kernel = torch.randn(out_channels, 1, k, k, generator=draw, dtype=torch.float64) + 3  # a clear first singular value
    parent = torch.ones_like(kernel)
    remainder = (closest(kernel, parent).apply(parent) - kernel).square().sum()
    singular = np.linalg.svd(kernel.flatten(1).numpy(), compute_uv=False)
    assert float(remainder) == pytest.approx(float((singular[1:] ** 2).sum()), rel=1e-6, abs=1e-9)
    full = torch.randn(out_channels, in_channels, k, k, generator=draw, dtype=torch.float64)
    made = full * torch.randn(out_channels, 1, 1, 1, generator=draw) * (torch.rand(1, 1, k, k, generator=draw) + 1)
    assert torch.allclose(closest(made, full).apply(full), made)


def test_unexplained_against_a_regression_per_channel():
    torch.manual_seed(0)
    borrowed = torch.randn(4, 60)
    own = borrowed * torch.tensor([[2.0], [-1.0], [0.0], [0.5]]) + 3 + 0.4 * torch.randn(4, 60)
    left = 0.0
    for x, y in zip(borrowed.double().numpy(), own.double().numpy()):
        slope, shift = np.polyfit(x, y, 1)
        left += ((slope * x + shift - y) ** 2).sum()
    power = float((own - own.mean(1, keepdim=True)).square().sum())
    assert unexplained(borrowed, own) == pytest.approx(left / power, rel=1e-5)


def test_cka_against_the_centred_gram_matrices():
    torch.manual_seed(0)
    a, b = [torch.randn(2, 5, 4, 4) for _ in range(2)], [torch.randn(2, 3, 8, 8) for _ in range(2)]
    cka = LinearCKA()
    for x, y in zip(a, b):
        cka.add(x, y)
    rows = [[], []]
    for x, y in zip(a, b):
        for flat, maps in zip(rows, (x, y.reshape(2, 3, 4, 2, 4, 2).mean((3, 5)))):  # the same positions
            flat += [maps[n, :, i, j].double().numpy() for n in range(2) for i in range(4) for j in range(4)]
    centring = np.eye(64) - 1 / 64
    k, m = (centring @ np.stack(flat) @ np.stack(flat).T @ centring for flat in rows)
    assert cka.value() == pytest.approx((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()), rel=1e-6)


def test_cka_of_a_rotated_and_scaled_copy_is_one():
    x, same = torch.randn(2, 4, 5, 5), LinearCKA()
    rotation = torch.linalg.qr(torch.randn(4, 4))[0]
    same.add(x, 3 * torch.einsum('dc,nchw->ndhw', rotation, x) + 1)
    assert same.value() == pytest.approx(1, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(2, 6), min_size=1, max_size=4))
def test_rounds_go_through_every_ordered_pair_once(sizes):
    groups = [[f'{g}.{i}' for i in range(size)] for g, size in enumerate(sizes)]
    pairs = [pair for mapping in rounds(groups) for pair in mapping.items()]
    assert sorted(pairs) == sorted((a, b) for group in groups for a in group for b in group if a != b)


def test_two_convs_that_are_equal_up_to_scale_are_the_best_pair():
    net = basic()
    with torch.no_grad():
        taps = torch.rand(1, 1, 3, 3) + 0.5
        net.layer3[0].conv2.weight.copy_(net.layer3[1].conv1.weight * torch.randn(32, 1, 1, 1) * taps)
    found = measure_redundancy(net)
    assert {(r['child'], r['parent']) for r in found.rows()[:2]} == {
        ('layer3.0.conv2', 'layer3.1.conv1'),
        ('layer3.1.conv1', 'layer3.0.conv2'),
    }
    assert found.rows()[0]['kernel_error'] < 1e-6 < 0.5 < found.rows()[2]['kernel_error']
    with torch.no_grad():  # an output knows no scale per tap
        net.layer3[0].conv2.weight.copy_(net.layer3[1].conv1.weight * torch.randn(32, 1, 1, 1))
    found = measure_redundancy(net, images())
    assert found.with_images and found.rows()[0]['output_error'] < 1e-5 < 0.3 < found.rows()[2]['output_error']


def test_errors_of_outputs_and_shares_against_a_walk_through_the_net():
    net, batches = basic(), images()
    pair = spoken(measure_redundancy(net, batches, batches=2))['layer2.0.conv2', 'layer2.1.conv1']
    own, borrowed, branch, block = [], [], [], []
    with torch.no_grad():
        for batch in batches:
            x = net.layer1(net.maxpool(torch.relu(net.bn1(net.conv1(batch)))))
            inside = net.layer2[0]
            hidden = torch.relu(inside.bn1(inside.conv1(x)))
            own.append(inside.conv2(hidden))
            borrowed.append(torch.nn.functional.conv2d(hidden, net.layer2[1].conv1.weight, padding=1))
            branch.append(inside.bn2(own[-1]))
            block.append(torch.relu(branch[-1] + inside.downsample(x)))
    own, borrowed = (torch.cat(t).transpose(0, 1).flatten(1) for t in (own, borrowed))
    assert pair.output_error == pytest.approx(unexplained(borrowed, own), rel=1e-4)
    spread = [sum(float(t.transpose(0, 1).flatten(1).var(1).sum()) for t in maps) for maps in (branch, block)]
    assert pair.share == pytest.approx(spread[0] / spread[1], rel=1e-4)
    assert pair.damage == pytest.approx(pair.share * pair.output_error)
    assert 0 < pair.cka < 1


def test_shares_by_norms_go_back_to_where_the_shortcut_begins():
    net = basic()
    norms = {name: m for name, m in net.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    gain = {name: float(norm.weight.detach().square().mean()) for name, norm in norms.items()}
    shares = shares_by_norms(net, ['layer1.1.conv1', 'layer2.1.conv2', 'layer2.0.downsample.0', 'conv1'])
    stage1, stage2 = (gain['layer1.0.bn2'] + gain['layer1.1.bn2'], gain['layer2.0.bn2'] + gain['layer2.0.downsample.1'])
    assert shares['layer1.1.conv1'] == pytest.approx(gain['layer1.1.bn2'] / (stage1 + gain['bn1']))
    assert shares['layer2.1.conv2'] == pytest.approx(gain['layer2.1.bn2'] / (stage2 + gain['layer2.1.bn2']))
    assert shares['layer2.0.downsample.0'] == pytest.approx(gain['layer2.0.downsample.1'] / stage2)
    assert shares['conv1'] == 1


def test_any_module_is_compared_by_its_kernels():
    neck = FPN([8, 16, 32], 8, num_outs=3)
    found = spoken(measure_redundancy(neck))
    assert set(found) == {(f'fpn_convs.{i}.conv', f'fpn_convs.{j}.conv') for i in range(3) for j in range(3) if i != j}
    assert all(pair.share == 1 and pair.output_error is None for pair in found.values())


def test_what_can_not_be_measured_is_one_error():
    with pytest.raises(DeriveError, match=r"FPN can't be run on images \(2, 3, 64, 64\)"):
        measure_redundancy(FPN([8, 16, 32], 8, num_outs=3), images())
    with pytest.raises(SharingPlanError, match='shares kernels already'):
        measure_redundancy(share_kernels(basic(), {'layer4.1.conv1': 'layer4.1.conv2'}))

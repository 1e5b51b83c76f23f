"""Starts of approximated children against closed formulas."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmseg.models.backbones.resnet import ResNet
from torch import nn

from mmkerneldna.derive import derive
from mmkerneldna.derive.fit import least_squares, low_rank, relative_error, same_size
from mmkerneldna.derive.start import effective_kernel
from mmkerneldna.sharing import share_kernels
from tests.helpers import randomise


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.sampled_from([1, 3, 5]), st.integers(0, 2**31))
def test_the_size_of_each_filter_is_kept(filters, inputs, k, seed):
    generator = torch.Generator().manual_seed(seed)
    kernel, parent = (torch.randn(filters, inputs, k, k, generator=generator, dtype=torch.float64) for _ in range(2))
    fitted = same_size(kernel, parent, taps=k > 1).apply(parent)
    assert torch.allclose(fitted.flatten(1).norm(dim=1), kernel.flatten(1).norm(dim=1))
    assert ((fitted * kernel).sum((1, 2, 3)) >= 0).all()
    if k > 1:
        assert torch.allclose(fitted.square().sum((0, 1)), kernel.square().sum((0, 1)), rtol=0.05)


def test_a_child_that_is_a_scaled_parent_is_fitted_exactly():
    torch.manual_seed(0)
    parent = torch.randn(4, 3, 3, 3)
    kernel = parent * torch.tensor([1.0, -2.0, 0.5, 3.0]).view(-1, 1, 1, 1) * torch.rand(1, 1, 3, 3).add(0.5)
    assert relative_error(kernel, same_size(kernel, parent, taps=True).apply(parent)) < 1e-3


def test_least_squares_is_the_projection():
    torch.manual_seed(0)
    kernel, parent = torch.randn(4, 3, 3, 3), torch.randn(4, 3, 3, 3)
    solved = torch.stack(
        [torch.linalg.lstsq(p.flatten()[:, None], c.flatten()[:, None]).solution[0, 0] for c, p in zip(kernel, parent)]
    )
    assert torch.allclose(least_squares(kernel, parent).filters.flatten(), solved, atol=1e-5)


def test_a_low_rank_remainder_is_taken_whole_and_truncated_best():
    torch.manual_seed(0)
    exact = torch.randn(6, 3) @ torch.randn(3, 12)
    left, right = low_rank(exact, 3)
    assert left.shape == (6, 3) and right.shape == (3, 12)
    assert torch.allclose(left @ right, exact, atol=1e-4)
    full = torch.randn(6, 12)
    left, right = low_rank(full, 2)
    tail = torch.linalg.svdvals(full)[2:].square().sum().sqrt()
    assert float((left @ right - full).norm()) == pytest.approx(float(tail), rel=1e-4)


def test_with_the_inputs_covariance_the_output_is_approximated_best():
    torch.manual_seed(0)
    full, x = torch.randn(6, 12), torch.randn(12, 12) @ torch.randn(12, 400)
    plain, white = low_rank(full, 2), low_rank(full, 2, x @ x.T / 400)
    errors = [float((left @ right @ x - full @ x).norm()) for left, right in (plain, white)]
    tail = torch.linalg.svdvals(full @ x)[2:].square().sum().sqrt()
    assert errors[1] < errors[0] and errors[1] == pytest.approx(float(tail), rel=1e-2)


def small():
    torch.manual_seed(0)
    net = randomise(
        ResNet(18, base_channels=4, stem_channels=4, num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1))
    )
    net.eval()
    return net


@pytest.mark.parametrize('images', [False, True])
def test_a_residual_of_full_rank_makes_every_child_exact(images):
    source = small()
    target = share_kernels(small(), {'layer2.1.conv1': 'layer2.1.conv2'}, residual_rank=8)
    batches = [torch.randn(8, 3, 64, 64) for _ in range(2)] if images else None
    report = derive(target, source, batches)
    assert report.children[0].kernel_error < 1e-2
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        target.eval()
        assert (target(x)[1] - source(x)[1]).norm() < 1e-2 * source(x)[1].norm()


def test_a_residual_of_low_rank_lowers_the_kernel_error():
    plans = [share_kernels(small(), {'layer2.1.conv1': 'layer2.1.conv2'}, residual_rank=r) for r in (0, 2, 6)]
    errors = [derive(target, small()).children[0].kernel_error for target in plans]
    assert errors[0] > errors[1] > errors[2] > 0


def test_children_without_a_spatial_scale_and_with_a_bias():
    torch.manual_seed(0)
    source, target = (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)) for _ in range(2))
    share_kernels(target, {'1': '2'}, spatial_scale=False)
    derive(target, source)
    child = target[1]
    assert child.spatial_scale is None and torch.equal(child.bias, source[1].bias)
    kernel = effective_kernel(child)
    assert torch.allclose(kernel.flatten(1).norm(dim=1), source[1].weight.flatten(1).norm(dim=1), rtol=1e-4)

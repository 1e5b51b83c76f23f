import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmkerneldna.layers import build_pooled_norm, pooled_norm
from mmkerneldna.layers.pooled_norm import CALIBRATION_BATCHES


def _batch_norm(channels=6):
    norm = build_pooled_norm(dict(type='BN'), channels)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def test_larger_batches_are_plain_batch_norm():
    norm, x = _batch_norm(), torch.randn(5, 6, 1, 1)
    torch.testing.assert_close(
        pooled_norm(norm, x),
        (x - x.mean(0)) / (x.var(0, unbiased=False) + norm.eps).sqrt() * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1),
    )


def test_one_value_per_channel_uses_then_moves_running_stats():
    norm, x = _batch_norm(), torch.randn(1, 6, 1, 1, requires_grad=True)
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    out = pooled_norm(norm, x)
    value = x.detach().flatten()
    expected = (value - mean) / (var + norm.eps).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(out.flatten(), expected)
    torch.testing.assert_close(norm.running_mean, 0.9 * mean + 0.1 * value)
    torch.testing.assert_close(norm.running_var, 0.9 * var + 0.1 * (value - mean) ** 2)
    out.sum().backward()
    torch.testing.assert_close(x.grad.flatten(), (norm.weight / (var + norm.eps).sqrt()).detach())


def test_running_variance_converges_to_the_batch_variance():
    norm = build_pooled_norm(dict(type='BN', momentum=0.01), 1)
    torch.manual_seed(0)
    for value in torch.randn(4000) * 3 + 5:
        pooled_norm(norm, value.view(1, 1, 1, 1))
    assert norm.running_mean.item() == pytest.approx(5, abs=0.5)
    assert norm.running_var.item() == pytest.approx(9, rel=0.25)


def test_empty_batch_leaves_running_stats_alone():
    norm = _batch_norm()
    mean = norm.running_mean.clone()
    assert pooled_norm(norm, torch.zeros(0, 6, 1, 1)).shape == (0, 6, 1, 1)
    torch.testing.assert_close(norm.running_mean, mean)


@pytest.mark.parametrize('batch', [1, 3])
def test_layer_norm_is_over_channels(batch):
    norm, x = build_pooled_norm(dict(type='LN'), 6), torch.randn(batch, 6, 1, 1)
    flat = x.flatten(1)
    expected = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    torch.testing.assert_close(pooled_norm(norm, x).flatten(1), expected)


def test_no_norm_is_identity():
    x = torch.randn(2, 6, 1, 1)
    assert pooled_norm(build_pooled_norm(None, 6), x) is x


def test_instance_norm_is_refused():
    with pytest.raises(ValueError, match="'IN'.*BN, SyncBN, LN, GN or None"):
        build_pooled_norm(dict(type='IN'), 6)


def _frozen(batches, **cfg):
    """A fresh norm in evaluation mode after as many batches in a layer in training mode, and those batches."""
    norm = build_pooled_norm(dict(type='BN', **cfg), 3).eval()
    data = [torch.randn(*shape) * 3 + torch.tensor([5.0, -1.0, 0.0]).view(3, 1, 1) for shape in batches]
    return norm, data, [pooled_norm(norm, x, training=True) for x in data]


@settings(deadline=None, max_examples=30)
@given(batch=st.integers(2, 4), height=st.integers(1, 4), count=st.integers(1, 6), momentum=st.sampled_from([0.1, None]))
def test_a_frozen_fresh_norm_takes_the_statistics_of_all_it_saw(batch, height, count, momentum):
    norm, data, _ = _frozen([(batch, 3, height, 2)] * count, momentum=momentum)
    values = torch.cat(data).transpose(0, 1).flatten(1)
    torch.testing.assert_close(norm.running_mean, values.mean(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norm.running_var, values.var(1, correction=0), rtol=1e-3, atol=1e-4)
    assert norm.num_batches_tracked == count and not norm.training


def test_a_frozen_fresh_norm_normalises_by_constants():
    norm, x = build_pooled_norm(dict(type='BN'), 3).eval(), torch.randn(4, 3, 5, 5, requires_grad=True)
    nn.init.normal_(norm.weight)
    y = pooled_norm(norm, x, training=True)
    mean, var = x.detach().mean((0, 2, 3)), x.detach().var((0, 2, 3), correction=0)
    slope = (norm.weight / (var + norm.eps).sqrt()).view(-1, 1, 1)
    torch.testing.assert_close(y, (x - mean.view(-1, 1, 1)) * slope + norm.bias.view(-1, 1, 1), rtol=1e-4, atol=1e-5)
    y.sum().backward()
    torch.testing.assert_close(x.grad, slope.expand_as(x).detach())


def test_a_frozen_fresh_norm_takes_single_images():
    torch.manual_seed(0)
    norm, data, outputs = _frozen([(1, 3, 1, 1)] * CALIBRATION_BATCHES)
    torch.testing.assert_close(norm.running_mean, torch.cat(data).mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norm.running_var, torch.full((3,), 9.0), rtol=0.35, atol=0)
    assert max(y.abs().max() for y in outputs) < 10


def test_a_norm_is_frozen_for_good_once_it_has_seen_enough():
    norm, _, _ = _frozen([(2, 3, 1, 1)] * CALIBRATION_BATCHES)
    mean, x = norm.running_mean.clone(), torch.randn(2, 3, 1, 1)
    expected = norm(x)
    assert torch.equal(pooled_norm(norm, x, training=True), expected) and torch.equal(norm.running_mean, mean)


def test_a_frozen_norm_in_a_frozen_layer_is_left_alone():
    norm, x = _batch_norm().eval(), torch.randn(4, 6, 1, 1)
    mean = norm.running_mean.clone()
    assert torch.equal(pooled_norm(norm, x, training=False), norm(x)) and torch.equal(norm.running_mean, mean)


def test_a_norm_that_is_used_twice_before_the_backward_pass():
    norm = build_pooled_norm(dict(type='BN'), 3).eval()
    inputs = [torch.randn(2, 3, size, size, requires_grad=True) for size in (4, 2)]
    sum(pooled_norm(norm, x, training=True).square().sum() for x in inputs).backward()
    assert all(torch.isfinite(x.grad).all() for x in inputs)


def test_synchronised_statistics_are_those_of_all_processes(monkeypatch):
    """Two processes of different batches, played one after the other."""
    batches, sums = [torch.randn(3, 4, 2, 2) + 2, torch.randn(5, 4, 2, 2)], []
    # by its path the module is hidden behind the function of the same name
    monkeypatch.setattr(sys.modules[pooled_norm.__module__], '_synchronised', lambda norm: True)
    monkeypatch.setattr('torch.distributed.all_reduce', lambda values, group: sums.append(values.clone()))
    norms = [nn.SyncBatchNorm(4).eval() for _ in range(3)]
    for norm, x in zip(norms, batches):
        pooled_norm(norm, x, training=True)
    monkeypatch.setattr('torch.distributed.all_reduce', lambda values, group: values.add_(sums[1]))
    pooled_norm(norms[2], batches[0], training=True)
    values = torch.cat(batches).transpose(0, 1).flatten(1)
    torch.testing.assert_close(norms[2].running_mean, values.mean(1))
    torch.testing.assert_close(norms[2].running_var, values.var(1, correction=0))


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('affine', [False, True])
def test_a_single_value_without_running_statistics_gives_the_bias(training, affine):
    norm = build_pooled_norm(dict(type='BN', track_running_stats=False, affine=affine), 6).train(training)
    if affine:
        nn.init.normal_(norm.bias)
    x = torch.randn(1, 6, 1, 1, requires_grad=True)
    y = pooled_norm(norm, x, training)
    torch.testing.assert_close(y.flatten(), norm.bias if affine else torch.zeros(6))
    y.sum().backward()
    assert not x.grad.any()
    torch.testing.assert_close(pooled_norm(norm, torch.randn(3, 6, 1, 1), training).mean(0).flatten(), y.flatten())

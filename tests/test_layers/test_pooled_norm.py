import pytest
import torch
from torch import nn

from mmkerneldna.layers import build_pooled_norm, pooled_norm


def _batch_norm(channels=6):
    norm = build_pooled_norm(dict(type='BN'), channels)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def test_larger_batches_are_plain_batch_norm():
    norm, x = _batch_norm(), torch.randn(5, 6, 1, 1)
    torch.testing.assert_close(pooled_norm(norm, x),
                               (x - x.mean(0)) / (x.var(0, unbiased=False) + norm.eps).sqrt() *
                               norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1))


def test_one_value_per_channel_uses_then_moves_running_stats():
    norm, x = _batch_norm(), torch.randn(1, 6, 1, 1, requires_grad=True)
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    out = pooled_norm(norm, x)
    value = x.detach().flatten()
    expected = (value - mean) / (var + norm.eps).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(out.flatten(), expected)
    torch.testing.assert_close(norm.running_mean, 0.9 * mean + 0.1 * value)
    torch.testing.assert_close(norm.running_var, 0.9 * var + 0.1 * (value - mean)**2)
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

"""Peak memory against known allocations."""

import pytest
import torch
from torch import nn

from mmkerneldna.measure.memory import momentum_bytes, peak_memory_mb, weight_bytes

MB = 10**6


def block(megabytes, device='cpu'):
    return torch.ones(megabytes * MB // 4, device=device)


def both(device='cpu'):
    a, b = block(8, device), block(4, device)
    return a.numel() + b.numel()


def one_after_the_other(device='cpu'):
    block(8, device)
    block(4, device)


@pytest.mark.parametrize('call, expected', [(both, 12), (one_after_the_other, 8)])
def test_peak_is_what_is_held_at_once(call, expected):
    assert peak_memory_mb(call, resident=0) == pytest.approx(expected, abs=0.01)


def test_resident_is_added_and_older_tensors_are_not():
    older = block(16)
    assert peak_memory_mb(lambda: block(2), resident=3 * MB) == pytest.approx(5, abs=0.01)
    assert older.numel()


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_peak_on_cuda():
    older = block(16, 'cuda')
    assert peak_memory_mb(lambda: both('cuda'), resident=0, device='cuda') == pytest.approx(12, abs=0.1)
    assert older.numel()


def test_a_device_without_statistics_has_no_figure():
    assert peak_memory_mb(lambda: None, resident=0, device='meta') is None


def test_weights_count_once():
    net = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4))
    net[1].weight = net[0].weight
    net[0].weight.requires_grad_(False)
    assert weight_bytes(net) == 4 * (16 + 2 * 4 + 2 * 4) + 8  # BN counts its batches in an int64
    assert momentum_bytes(net) == 4 * 2 * 4

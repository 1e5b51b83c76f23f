"""RoIAlign as weighted sums of rows against mmcv's kernel."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.ops import RoIAlign
from torch import nn

from mmkerneldna.deploy.roi_align import BagRoIAlign, replace_roi_aligns


@torch.no_grad()
@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    bins=st.sampled_from([(7, 7), (2, 3), (1, 1)]),
    sampling_ratio=st.sampled_from([0, 0, 1, 2]),
    aligned=st.booleans(),
    scale=st.sampled_from([1.0, 0.25]),
    channels_last=st.booleans(),
)
def test_equals_mmcv(seed, bins, sampling_ratio, aligned, scale, channels_last):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 5, 13, 17, generator=generator)
    corners = (torch.rand(12, 2, 2, generator=generator) * 1.6 - 0.3) * torch.tensor([17, 13]) / scale
    boxes = torch.cat([corners.amin(1), corners.amax(1)], 1)
    boxes[0, 2:] = boxes[0, :2]  # empty
    boxes[1] = torch.tensor([-90.0, -90.0, -50.0, -50.0])  # outside
    boxes[2] = torch.tensor([0.0, 0.0, 17 / scale, 13 / scale])  # the whole map
    rois = torch.cat([torch.randint(0, 2, (12, 1), generator=generator).float(), boxes], 1)
    layer = RoIAlign(bins, scale, sampling_ratio, aligned=aligned)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    found = BagRoIAlign(layer)(features.contiguous(memory_format=layout), rois)
    torch.testing.assert_close(found, layer(features, rois), rtol=1e-4, atol=1e-5)


def test_with_gradients_and_without_regions_it_is_mmcvs():
    layer = RoIAlign(2, 1.0)
    features, rois = torch.randn(1, 3, 8, 8, requires_grad=True), torch.tensor([[0.0, 1, 1, 5, 6]])
    BagRoIAlign(layer)(features, rois).sum().backward()
    assert features.grad.abs().sum() > 0
    with torch.no_grad():
        assert BagRoIAlign(layer)(features, rois[:0]).shape == (0, 3, 2, 2)


@torch.no_grad()
def test_few_weights_at_a_time_are_the_same(monkeypatch):
    layer, features = BagRoIAlign(RoIAlign(3, 1.0)), torch.randn(1, 4, 20, 20)
    rois = torch.tensor([[0.0, 1, 1, 5, 6], [0, 2, 3, 17, 18], [0, 4, 4, 16, 19]])
    whole = layer(features, rois)
    monkeypatch.setattr('mmkerneldna.deploy.roi_align.MAX_WEIGHTS', 1)
    torch.testing.assert_close(layer(features, rois), whole)


@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_only_what_averages_is_replaced(mode):
    net = nn.ModuleList([RoIAlign(2, 1.0, pool_mode=mode), nn.ModuleList([RoIAlign(2, 0.5, pool_mode=mode)])])
    assert replace_roi_aligns(net) == (2 if mode == 'avg' else 0)
    assert isinstance(net[0], BagRoIAlign) == (mode == 'avg')
    assert replace_roi_aligns(net) == 0

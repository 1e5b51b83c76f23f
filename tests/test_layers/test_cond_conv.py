import pytest
import torch
from conv_cases import assert_same_as, conv_cases, naive_conv
from hypothesis import given, settings
from hypothesis import strategies as st

from mmkerneldna.layers import CondConv2d


def naive_cond_conv(layer, x):
    """Yang et al. 2019, equation 1 and the routing function of section 3, sample by sample."""
    outputs = []
    for sample in x:
        pooled = torch.stack([channel.mean() for channel in sample])
        routing = 1 / (1 + torch.exp(-(layer.routing.weight @ pooled + layer.routing.bias)))
        kernel = sum(alpha * expert for alpha, expert in zip(routing, layer.weight))
        outputs.append(naive_conv(layer, sample, kernel))
    y = torch.stack(outputs)
    return y if layer.bias is None else y + layer.bias.view(-1, 1, 1)


@settings(deadline=None, max_examples=60)
@given(case=conv_cases(), num_experts=st.integers(1, 5))
def test_matches_the_paper(case, num_experts):
    assert_same_as(CondConv2d(**case['conv'], num_experts=num_experts), naive_cond_conv, case)


def test_paper_has_eight_experts():
    assert CondConv2d(4, 6, 3).weight.shape == (8, 6, 4, 3, 3)


@pytest.mark.parametrize('num_experts', [1, 2, 3, 8])
def test_static_start_routes_to_pairs_of_opposite_logits(num_experts):
    static, layer = torch.nn.Conv2d(4, 6, 3), CondConv2d(4, 6, 3, num_experts=num_experts)
    layer.load_state_dict(static.state_dict(), strict=False)
    weight = layer.routing.weight
    for first in range(0, num_experts - 1, 2):
        assert weight[first].abs().min() > 0 and torch.equal(weight[first], -weight[first + 1])
    assert num_experts % 2 == 0 or not weight[-1].any()
    x = 100 * torch.randn(2, 4, 7, 7)
    torch.testing.assert_close(layer(x), static(x), rtol=1e-4, atol=1e-3)

import pytest
import torch
from conv_cases import assert_same_as, conv_cases, naive_conv
from hypothesis import given, settings
from hypothesis import strategies as st

from mmkerneldna.layers import DyConv2d


def naive_dy_conv(layer, x):
    """Chen et al. 2020: kernels and biases mixed by a softmax over a two-layer attention, sample by sample."""
    outputs = []
    first, second = layer.attention.fc1, layer.attention.fc2
    for sample in x:
        hidden = torch.relu(first.weight.flatten(1) @ sample.mean((1, 2)))
        powers = torch.exp((second.weight.flatten(1) @ hidden + second.bias) / layer.temperature)
        attention = powers / powers.sum()
        y = naive_conv(layer, sample, sum(pi * expert for pi, expert in zip(attention, layer.weight)))
        if layer.bias is not None:
            y = y + sum(pi * bias for pi, bias in zip(attention, layer.bias)).view(-1, 1, 1)
        outputs.append(y)
    return torch.stack(outputs)


@settings(deadline=None, max_examples=60)
@given(case=conv_cases(), num_experts=st.integers(1, 5), temperature=st.sampled_from([1.0, 4.0, 30.0]))
def test_matches_the_paper(case, num_experts, temperature):
    layer = DyConv2d(**case['conv'], num_experts=num_experts, temperature=temperature)
    assert_same_as(layer, naive_dy_conv, case)


def test_temperature_flattens_the_attention():
    torch.manual_seed(0)
    layer, x = DyConv2d(4, 4, 1, bias=False), torch.randn(2, 4, 5, 5)
    uniform = torch.nn.functional.conv2d(x, layer.weight.mean(0))
    assert not torch.allclose(layer(x), uniform, atol=1e-3)
    layer.temperature = 1e6
    torch.testing.assert_close(layer(x), uniform, rtol=0, atol=1e-4)


@pytest.mark.parametrize('temperature', [0, -1])
def test_refuses_a_temperature_that_is_not_positive(temperature):
    with pytest.raises(ValueError, match=f'temperature={temperature} must be positive'):
        DyConv2d(4, 4, 3, temperature=temperature)

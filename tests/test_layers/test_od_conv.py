import pytest
import torch
from conv_cases import assert_same_as, conv_cases, naive_conv, naive_norm
from hypothesis import given, settings
from hypothesis import strategies as st

from mmkerneldna.layers import ODConv2d


def naive_od_conv(layer, x):
    """Li et al. 2022, equation 2: the four attentions multiply the kernels themselves, sample by sample."""
    attention = layer.attention
    hidden = torch.stack([attention.fc.weight.flatten(1) @ sample.mean((1, 2)) for sample in x])[..., None, None]
    hidden = torch.relu(naive_norm(attention.norm, hidden)).flatten(1)

    def logits(head, i):
        return (head.weight.flatten(1) @ hidden[i] + head.bias) / layer.temperature

    outputs = []
    for i, sample in enumerate(x):
        channel = torch.sigmoid(logits(attention.channel_fc, i))
        # the kernel of a group sees the channels of its group
        per_group = channel.view(layer.groups, 1, -1).expand(-1, layer.out_channels // layer.groups, -1).flatten(0, 1)
        kernels = layer.weight * per_group[None, :, :, None, None]
        if attention.filter_fc is not None:
            kernels = kernels * torch.sigmoid(logits(attention.filter_fc, i)).view(1, -1, 1, 1, 1)
        if attention.spatial_fc is not None:
            kernels = kernels * torch.sigmoid(logits(attention.spatial_fc, i)).view(1, 1, 1, *layer.kernel_size)
        if attention.kernel_fc is not None:
            kernels = kernels * torch.softmax(logits(attention.kernel_fc, i), 0).view(-1, 1, 1, 1, 1)
        outputs.append(naive_conv(layer, sample, kernels.sum(0)))
    y = torch.stack(outputs)
    return y if layer.bias is None else y + layer.bias.view(-1, 1, 1)


@settings(deadline=None, max_examples=80)
@given(case=conv_cases(), num_experts=st.integers(1, 4), temperature=st.sampled_from([1.0, 30.0]))
def test_matches_the_paper(case, num_experts, temperature):
    layer = ODConv2d(**case['conv'], num_experts=num_experts, temperature=temperature)
    assert_same_as(layer, naive_od_conv, case)


def test_attentions_that_a_layer_has():
    depthwise = ODConv2d(8, 8, 3, groups=8).attention
    assert depthwise.filter_fc is None and depthwise.spatial_fc is not None
    pointwise = ODConv2d(8, 4, 1, num_experts=1).attention
    assert pointwise.spatial_fc is None and pointwise.kernel_fc is None and pointwise.filter_fc is not None


@pytest.mark.parametrize('channels, hidden', [(512, 32), (256, 16), (64, 16), (3, 16)])
def test_hidden_width_is_a_sixteenth_but_at_least_sixteen(channels, hidden):
    assert ODConv2d(channels, 4, 1).attention.fc.out_channels == hidden


def test_static_start_keeps_a_random_kernel_attention():
    torch.manual_seed(0)
    static, layer = torch.nn.Conv2d(4, 6, 3, padding=1), ODConv2d(4, 6, 3, padding=1)
    kernel = static.weight.clone()
    state = static.state_dict()
    result = layer.load_state_dict(state, strict=False)
    assert not result.unexpected_keys and all(key.startswith('attention.') for key in result.missing_keys)
    assert state['weight'].shape == kernel.shape, "the caller's state dict was changed"
    assert layer.attention.kernel_fc.weight.any() and not layer.attention.channel_fc.weight.any()
    x = torch.randn(2, 4, 7, 7)
    torch.testing.assert_close(layer(x), static(x), rtol=1e-4, atol=1e-5)

import torch
from conv_cases import assert_same_as, conv_cases, naive_conv, naive_norm
from hypothesis import given, settings
from hypothesis import strategies as st

from mmkerneldna.layers import SEConv2d


def naive_se_conv(layer, x):
    """Squeeze, excite, convolve: the gate scales the input of a static kernel, sample by sample."""
    gate = layer.gate
    hidden = torch.stack([gate.fc1.weight.flatten(1) @ sample.mean((1, 2)) for sample in x])[..., None, None]
    hidden = torch.relu(naive_norm(gate.norm, hidden)).flatten(1)
    scales = [torch.sigmoid(gate.fc2.weight.flatten(1) @ h + gate.fc2.bias) for h in hidden]
    y = torch.stack([naive_conv(layer, s * scale.view(-1, 1, 1), layer.weight) for s, scale in zip(x, scales)])
    return y if layer.bias is None else y + layer.bias.view(-1, 1, 1)


@settings(deadline=None, max_examples=60)
@given(case=conv_cases(), reduction=st.sampled_from([1, 2, 4]))
def test_matches_the_formula(case, reduction):
    assert_same_as(SEConv2d(**case['conv'], reduction=reduction), naive_se_conv, case)


def test_stem_of_three_channels():
    assert SEConv2d(3, 8, 7).gate.fc1.out_channels == 1

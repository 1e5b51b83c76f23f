import pytest
import torch
from conv_cases import assert_same_as, conv_cases, naive_conv, naive_norm
from hypothesis import given, settings
from hypothesis import strategies as st

from mmkerneldna.layers import DCDConv2d


def hard_sigmoid(x):
    return torch.clamp(x + 3, 0, 6) / 3


def pooled(sample, side):
    """Average pool to side x side, torch's uneven bins included."""
    _, height, width = sample.shape
    cells = [
        sample[:, i * height // side : -(-(i + 1) * height // side), j * width // side : -(-(j + 1) * width // side)]
        for i in range(side)
        for j in range(side)
    ]
    return torch.stack([cell.mean((1, 2)) for cell in cells], 1).flatten()


def centre_kernel(layer, matrix):
    """A (C', C_in) matrix as a kernel that is zero but for its centre."""
    kernel = matrix.new_zeros(*matrix.shape, *layer.kernel_size)
    row, column = ((size - 1) // 2 for size in layer.kernel_size)
    kernel[:, :, row, column] = matrix
    return kernel


def naive_hidden(branch, sample):
    hidden = branch.fc.weight @ pooled(sample, branch.pool_size)
    return hidden * hard_sigmoid(branch.self_gate.weight @ hidden)


def naive_dcd(layer, x):
    """Li et al. 2021: Lambda W_0 + P Phi Q^T with Q at the kernel's centre, and the released code's norms."""
    branch, scales, phis = layer.fusion, [], []
    for sample in x:
        hidden = naive_hidden(branch, sample)
        scales.append(hard_sigmoid(branch.scale_fc.weight @ hidden))
        size = layer.q.out_channels
        phis.append((branch.phi_fc.weight @ hidden).view(size, size))
    q = centre_kernel(layer, layer.q.weight.flatten(1))
    latent = naive_norm(layer.norm_q, torch.stack([naive_conv(layer, sample, q) for sample in x]))
    fused = torch.stack([torch.einsum('ij,jhw->ihw', phi, h) for phi, h in zip(phis, latent)])
    latent = naive_norm(layer.norm_phi, fused) + latent
    static = torch.stack([naive_conv(layer, s, layer.weight * scale.view(-1, 1, 1, 1)) for s, scale in zip(x, scales)])
    y = static + torch.einsum('ol,nlhw->nohw', layer.p.weight.flatten(1), latent)
    return y if layer.bias is None else y + layer.bias.view(-1, 1, 1)


@settings(deadline=None, max_examples=80)
@given(case=conv_cases(groups=('1',)), latent=st.sampled_from([None, 1, 3]), pool_size=st.sampled_from([1, 2]))
def test_matches_the_paper(case, latent, pool_size):
    layer = DCDConv2d(**case['conv'], latent_channels=latent, pool_size=pool_size, reduction=4)
    assert_same_as(layer, naive_dcd, case)


def naive_depthwise_dcd(layer, x):
    """Li et al. 2021, section 4.2: Lambda W_0 + P Phi R^T on a (C, k^2) matrix."""
    branch, out = layer.fusion, []
    for sample in x:
        hidden = naive_hidden(branch, sample)
        phi = (branch.phi_fc.weight @ hidden).view(layer.p.in_features, layer.r.in_features)
        matrix = hard_sigmoid(branch.scale_fc.weight @ hidden)[:, None] * layer.weight.flatten(1)
        matrix = matrix + torch.einsum('cl,lm,tm->ct', layer.p.weight, phi, layer.r.weight)
        out.append(naive_conv(layer, sample, matrix.view_as(layer.weight)))
    y = torch.stack(out)
    return y if layer.bias is None else y + layer.bias.view(-1, 1, 1)


@settings(deadline=None, max_examples=60)
@given(case=conv_cases(groups=('depthwise',)), latent=st.sampled_from([None, 1, 3]), pool_size=st.sampled_from([1, 2]))
def test_depthwise_matches_the_paper(case, latent, pool_size):
    layer = DCDConv2d(**case['conv'], latent_channels=latent, pool_size=pool_size, reduction=4)
    assert_same_as(layer, naive_depthwise_dcd, case)


@pytest.mark.parametrize('channels, kernel, shape', [(64, 3, (8, 4)), (96, 5, (12, 12)), (32, 1, (8, 1)), (144, 3, (18, 4))])
def test_default_widths_of_a_depthwise_layer(channels, kernel, shape):
    layer = DCDConv2d(channels, channels, kernel, groups=channels)
    assert (layer.p.in_features, layer.r.in_features) == shape == layer.fusion.phi_shape
    assert layer.p.weight.shape == (channels, shape[0]) and layer.r.weight.shape == (kernel**2, shape[1])


def test_is_one_dynamic_kernel_without_the_norms():
    """Equation 6, and the identity beside Phi: W(x) = Lambda W_0 + P (Phi + I) Q^T."""
    torch.manual_seed(0)
    layer, x = DCDConv2d(16, 6, 3, padding=1, bias=False, norm_cfg=None), torch.randn(1, 16, 8, 8)
    fusion = layer.fusion(x)
    mixing = layer.p.weight.flatten(1) @ (fusion.phi[0] + torch.eye(4)) @ layer.q.weight.flatten(1)
    kernel = layer.weight * fusion.scale[0].unsqueeze(-1) + centre_kernel(layer, mixing)
    torch.testing.assert_close(layer(x)[0], naive_conv(layer, x[0], kernel), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('channels, pool_size, latent', [(64, 1, 8), (128, 1, 11), (64, 2, 16), (512, 2, 45)])
def test_default_latent_width(channels, pool_size, latent):
    assert DCDConv2d(channels, 8, 1, pool_size=pool_size).q.out_channels == latent


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(groups=2), 'groups=2'),
        (dict(groups=4), 'groups=4 with 8 and 8 channels'),
        (dict(latent_channels=0), 'latent_channels=0'),
        (dict(pool_size=0), 'pool_size=0'),
        (dict(reduction=99), 'reduction=99'),
        (dict(norm_cfg=dict(type='LN')), 'LN'),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        DCDConv2d(8, 8, 3, **options)

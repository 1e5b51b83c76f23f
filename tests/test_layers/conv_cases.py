"""Random convolution shapes and the comparison with a reference, shared by the tests of the dynamic layers."""

from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor, nn


@st.composite
def conv_cases(draw, groups=('1', '2', 'depthwise')) -> dict:
    """A layer's Conv2d arguments plus the shape of an input it can take."""
    group_kind = draw(st.sampled_from(groups))
    in_channels = draw(st.sampled_from([4, 8]))
    out_channels = in_channels if group_kind == 'depthwise' else draw(st.sampled_from([2, 4, 6]))
    count = in_channels if group_kind == 'depthwise' else int(group_kind)
    return dict(
        conv=dict(
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=draw(st.sampled_from([1, 2, 3, 5, (3, 1)])),
            stride=draw(st.sampled_from([1, 2, (1, 3)])),
            padding=draw(st.sampled_from([0, 1, (2, 1)])),
            dilation=draw(st.sampled_from([1, 2])),
            groups=count,
            bias=draw(st.booleans()),
            padding_mode=draw(st.sampled_from(['zeros', 'zeros', 'reflect'])),
        ),
        shape=(draw(st.integers(1, 3)), in_channels, draw(st.integers(9, 12)), draw(st.integers(9, 12))),
        training=draw(st.booleans()),
    )


def randomise(layer: nn.Module) -> None:
    """Random values everywhere, BN statistics included, so that no term of a formula is zero or one by chance."""
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    for module in layer.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)


def naive_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """BatchNorm written out; with a single value per channel there is no variance, so the running statistics count."""
    mean, var = norm.running_mean, norm.running_var
    if norm.training and x.numel() > x.shape[1]:
        mean = x.mean((0, 2, 3))
        var = (x - mean.view(-1, 1, 1)).square().mean((0, 2, 3))
    x = (x - mean.view(-1, 1, 1)) / (var.view(-1, 1, 1) + norm.eps).sqrt()
    return x * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)


def naive_conv(layer: nn.Module, sample: Tensor, kernel: Tensor) -> Tensor:
    """One sample (C, H, W) and one kernel, by the definition: a sum over the taps of shifted, strided views."""
    (kh, kw), (sh, sw), (dh, dw), groups = layer.kernel_size, layer.stride, layer.dilation, layer.groups
    mode = 'constant' if layer.padding_mode == 'zeros' else layer.padding_mode
    ph, pw = layer.padding
    x = nn.functional.pad(sample[None], (pw, pw, ph, ph), mode)[0]
    height = (x.shape[1] - dh * (kh - 1) - 1) // sh + 1
    width = (x.shape[2] - dw * (kw - 1) - 1) // sw + 1
    kernel = kernel.unflatten(0, (groups, -1))
    out = 0
    for i in range(kh):
        for j in range(kw):
            view = x[:, i * dh : i * dh + (height - 1) * sh + 1 : sh, j * dw : j * dw + (width - 1) * sw + 1 : sw]
            out = out + torch.einsum('goc,gchw->gohw', kernel[..., i, j], view.unflatten(0, (groups, -1)))
    return out.flatten(0, 1)


def assert_same_as(layer: nn.Module, reference: Callable[[nn.Module, Tensor], Tensor], case: dict) -> None:
    """Compare output and every gradient of ``layer`` with ``reference(layer, x)``, in double precision."""
    layer = layer.double().train(case['training'])
    randomise(layer)
    x = torch.randn(case['shape'], dtype=torch.double, requires_grad=True)
    expected = reference(layer, x)  # first: the layer moves its running statistics
    actual = layer(x)
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)
    names, tensors = zip(('x', x), *layer.named_parameters())
    cotangent = torch.randn_like(actual)
    gradients = [torch.autograd.grad(y, tensors, cotangent, allow_unused=True) for y in (actual, expected)]
    for name, ours, theirs in zip(names, *gradients):
        assert (ours is None) == (theirs is None), name
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7, msg=lambda m: f'gradient of {name}: {m}')

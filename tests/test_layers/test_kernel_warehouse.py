import copy
import io
import math

import pytest
import torch
from conv_cases import assert_same_as, conv_cases, naive_conv, naive_norm
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.models import MobileNetV2, ResNet
from mmengine.model import ExponentialMovingAverage
from torch import nn

from mmkerneldna.layers import KWConv2d, SwapError, swap_convs
from mmkerneldna.layers.kernel_warehouse_plan import PRESETS

HEADS = {'resnet18': 513_000, 'resnet50': 2_049_000, 'mobilenet_v2': 1_281_000}
NETS = {'resnet18': lambda: ResNet(18), 'resnet50': lambda: ResNet(50), 'mobilenet_v2': lambda: MobileNetV2(out_indices=(7,))}


def naive_attention(layer, x):
    """Section 3.4, mixture by mixture: each over the sum of absolutes (the zero cell included), mixed with beta."""
    attention, t = layer.attention, layer.temperature
    mixtures, logits_each = attention.shape
    hidden = torch.stack([attention.fc1.weight @ sample.mean((1, 2)) for sample in x])[..., None, None]
    hidden = torch.relu(naive_norm(attention.norm, hidden)).flatten(1)
    alphas = torch.zeros(len(x), mixtures, logits_each - 1, dtype=x.dtype)
    for i in range(len(x)):
        z = (attention.fc2.weight @ hidden[i] + attention.fc2.bias).view(mixtures, logits_each)
        for m in range(mixtures):
            beta = torch.zeros(logits_each, dtype=x.dtype)
            beta[layer.place.assignment[m]] = 1
            row = (1 - t) * z[m] / (z[m].abs().sum() + 1e-3) + t * beta
            alphas[i, m] = row[:-1]
    return alphas


def naive_kw_conv(layer, x):
    """Cell by cell: mixture (i, j, o, c) fills rows o and columns c of kernel position (i, j)."""
    _, cols, outs, ins = layer.place.splits
    c_out, c_in = layer.cells.shape[1:3]
    y = []
    for sample, alpha in zip(x, naive_attention(layer, x)):
        kernel = torch.zeros(layer.kernel_shape, dtype=x.dtype)
        mixtures = torch.einsum('mn,nij->mij', alpha, layer.cells)
        for m in range(len(alpha)):
            i, rest = divmod(m, cols * outs * ins)
            j, rest = divmod(rest, outs * ins)
            o, c = divmod(rest, ins)
            kernel[o * c_out : (o + 1) * c_out, c * c_in : (c + 1) * c_in, i, j] = mixtures[m]
        y.append(naive_conv(layer, sample, kernel))
    y = torch.stack(y)
    return y if layer.bias is None else y + layer.bias.view(-1, 1, 1)


@settings(deadline=None, max_examples=50)
@given(
    case=conv_cases(),
    budget=st.sampled_from([1, 3]),
    ratio=st.sampled_from([1, 0.5]),
    temperature=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_matches_the_paper(case, budget, ratio, temperature):
    layer = KWConv2d(**case['conv'], budget=budget, cell_out_ratio=ratio, temperature=temperature)
    assert_same_as(layer, naive_kw_conv, case)


@settings(deadline=None, max_examples=20)
@given(batch=st.integers(1, 3), ratio=st.sampled_from([0.0625, 0.5]))
def test_basis_expands_to_the_other_layers_cells(batch, ratio):
    convs = {f'layer1.{i}.conv2': nn.Conv2d(8, 8, 3, padding=1, bias=False) for i in range(3)}
    layer = KWConv2d.build_swapped(convs, nonlocal_basis_ratio=ratio)['layer1.1.conv2'].double().eval()
    layer._shared[0].double()
    attention = layer.attention
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    basis = attention.fc3.in_features
    x = torch.randn(batch, 8, 5, 5, dtype=torch.double)
    actual = attention(x, 0.0)
    hidden = torch.relu(naive_norm(attention.norm, (x.mean((2, 3)) @ attention.fc1.weight.T)[..., None, None])).flatten(1)
    for i in range(batch):
        values = (attention.fc2.weight @ hidden[i]).view(9, 9 + basis + 1)
        for m in range(9):
            others = attention.fc3.weight @ values[m, 9:-1]
            z = torch.cat([others[:9], values[m, :9], others[9:], values[m, -1:]]) + attention.basis_bias.view(9, 28)[m]
            torch.testing.assert_close(actual[i, m], (z / (z.abs().sum() + 1e-3))[:-1])


@pytest.mark.parametrize(
    'arch, scale, published',
    [
        ('resnet18', '1/2x', 7.43),
        ('resnet18', '1x', 11.93),
        ('resnet18', '2x', 23.24),
        ('resnet18', '4x', 45.86),
        ('resnet50', '1/2x', 17.64),
        ('resnet50', '1x', 28.05),
        ('resnet50', '4x', 102.02),
        ('mobilenet_v2', '1x', 5.17),
        ('mobilenet_v2', '4x', 11.38),
    ],
)
def test_published_parameters(arch, scale, published):
    with torch.device('meta'):
        net = swap_convs(NETS[arch](), dict(type='KWConv2d', **PRESETS[arch][scale]))
    millions = (sum(p.numel() for p in net.parameters()) + HEADS[arch]) / 1e6
    assert round(millions, 2) == published


def small_net(training=False, **cfg):
    net = swap_convs(ResNet(18, base_channels=8, **cfg), dict(type='KWConv2d'))
    net.train(training)
    return net


def test_full_temperature_starts_from_one_cell_per_mixture():
    layer = KWConv2d(4, 6, 3, temperature=1.0)
    x = torch.randn(2, 4, 7, 7)
    own = layer.cells.view(3, 3, 6, 4).permute(2, 3, 0, 1)
    torch.testing.assert_close(layer(x), nn.functional.conv2d(x, own, layer.bias))


@pytest.mark.parametrize('budget', [1, 2])
def test_static_checkpoint_gives_the_static_output_at_full_temperature(budget):
    static, x = ResNet(18, base_channels=8), torch.randn(1, 3, 32, 32)
    static.eval()
    net = swap_convs(ResNet(18, base_channels=8), dict(type='KWConv2d', budget=budget, temperature=1.0))
    state = static.state_dict()
    result = net.load_state_dict(state, strict=False)
    assert not result.unexpected_keys and 'layer1.0.conv1.weight' in state
    assert all('.attention.' in key or key.endswith('.cells') for key in result.missing_keys)
    net.eval()
    for ours, expected in zip(net(x), static(x)):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('change', [copy.deepcopy, lambda net: ExponentialMovingAverage(net).module], ids=['deepcopy', 'ema'])
def test_a_copy_has_warehouses_of_its_own(change):
    net, x = small_net(), torch.randn(1, 3, 32, 32)
    expected, twin = net(x), change(net)
    torch.testing.assert_close(twin(x), expected)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert all(layer.cells.abs().sum() == 0 for layer in twin.modules() if isinstance(layer, KWConv2d))
    torch.testing.assert_close(net(x), expected)


def test_every_warehouse_is_in_the_state_dict_once_and_loads_strictly():
    net, other, x = small_net(), small_net(), torch.randn(1, 3, 32, 32)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    cells = [key for key in net.state_dict() if key.endswith('.cells')]
    assert cells == [f'layer{i}.0.downsample.0.warehouse.cells' for i in (2, 3, 4)] + ['layer4.1.conv2.warehouse.cells']
    assert len({id(layer.cells) for layer in net.modules() if isinstance(layer, KWConv2d)}) == 4
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(other(x), net(x)))


def test_freezing_the_first_stage_leaves_the_cells_of_a_live_layer_trainable():
    net = small_net(training=True, frozen_stages=1)
    shared = net.layer1[0].conv1.cells
    assert shared is net.layer2[0].conv1.cells and shared.requires_grad
    assert not any(p.requires_grad for p in net.layer1.parameters())


def test_gradients_of_all_layers_reach_the_shared_cells():
    net = small_net(training=True)
    sum(y.sum() for y in net(torch.randn(1, 3, 32, 32))).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.parametrize('again', [False, True])
def test_every_cell_is_drawn_also_after_the_init_of_mmengine(again):
    net = swap_convs(ResNet(18, base_channels=32), dict(type='KWConv2d'))
    if again:
        net.init_weights()
    for layer in net.modules():
        if isinstance(layer, KWConv2d):
            own = layer.cells[layer.place.start : layer.place.start + layer.place.owned]
            assert own.std().item() == pytest.approx((2 / (own.shape[0] * own.shape[1])) ** 0.5, rel=0.15)
            fc1 = layer.attention.fc1.weight
            assert fc1.std().item() == pytest.approx((2 / len(fc1)) ** 0.5, rel=0.15)


def test_chunks_of_a_batch_give_the_batch(monkeypatch):
    layer, x = KWConv2d(4, 6, 3).eval(), torch.randn(5, 4, 7, 7)
    expected = layer(x)
    monkeypatch.setattr('mmkerneldna.layers.per_sample.CHUNK_ELEMENTS', 2 * math.prod(layer.kernel_shape))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize('value', [-0.1, 1.5, 30])
def test_temperature_out_of_range(value):
    with pytest.raises(ValueError, match='must lie between 0'):
        KWConv2d(4, 4, 3, temperature=value)
    layer = KWConv2d(4, 4, 3)
    with pytest.raises(ValueError, match='KWConv2d must lie between 0'):
        layer.temperature = value


def test_error_names_the_warehouse():
    with pytest.raises(ValueError, match=r"warehouse 'layer1' of 6 layers \(layer1.0.conv1, ...\): budget=0.5 needs 2"):
        swap_convs(ResNet(18), dict(type='KWConv2d', budget=0.5))
    with pytest.raises(SwapError, match='matches no convolution'):
        swap_convs(ResNet(18), dict(type='KWConv2d'), include=['layer9.*'])

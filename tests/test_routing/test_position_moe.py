import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks import build_conv_layer
from mmdet.models.backbones import ResNet
from torch import nn

from mmkerneldna.layers import swap_convs
from mmkerneldna.layers.routed import collect_losses, routed_layers
from mmkerneldna.routing import PositionFFN2d, PositionMoE2d


def randomise(layer):
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer


def naive(layer, x):
    """One position at a time, its experts in the order of their probability; strides by hand."""
    sh, sw = getattr(layer, 'stride', (1, 1))
    x = x[:, :, ::sh, ::sw]
    y = x.new_zeros(len(x), layer.out_channels, *x.shape[2:])
    for n in range(len(x)):
        for i in range(x.shape[2]):
            for j in range(x.shape[3]):
                y[n, :, i, j] = naive_position(layer, x[n, :, i, j])
    return y


def naive_position(layer, token):
    p = torch.softmax(layer.gate.weight @ token + layer.gate.bias, 0)
    chosen = sorted(range(len(p)), key=lambda e: -p[e].item())[: layer.top_k]
    if isinstance(layer, PositionFFN2d):
        outputs = [w2 @ nn.functional.gelu(w1 @ token + b1) for w1, b1, w2 in zip(layer.weight1, layer.bias1, layer.weight2)]
        bias = layer.bias2
    else:
        outputs, bias = [kernel[:, :, 0, 0] @ token for kernel in layer.weight], layer.bias
    y = sum(p[e] * outputs[e] for e in chosen)
    return y if bias is None else y + bias


def compare(layer, x, reference=naive):
    x = x.requires_grad_()
    actual, expected = layer(x), reference(layer, x)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    tensors = [x, *layer.parameters()]
    cotangent = torch.randn_like(actual)
    for ours, theirs in zip(*(torch.autograd.grad(y, tensors, cotangent, allow_unused=True) for y in (actual, expected))):
        if theirs is None:  # the loop left an expert out altogether
            assert ours is None or not ours.any()
        else:
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 5),
    stride=st.sampled_from([1, 2, (1, 3)]),
    bias=st.booleans(),
    shape=st.tuples(st.integers(1, 2), st.just(4), st.integers(1, 5), st.integers(1, 5)),
    training=st.booleans(),
    data=st.data(),
)
def test_matches_a_loop_over_positions(n, stride, bias, shape, training, data):
    k = data.draw(st.integers(1, n))
    layer = PositionMoE2d(4, 6, 1, stride, bias=bias, num_experts=n, top_k=k).double().train(training)
    compare(randomise(layer), torch.randn(shape, dtype=torch.double))


@pytest.mark.parametrize('top_k', [1, 2, 4])
def test_perceptrons_match_a_loop_over_positions(top_k):
    layer = randomise(PositionFFN2d(4, 6, 3, num_experts=4, top_k=top_k).double())
    compare(layer, torch.randn(2, 4, 3, 5, dtype=torch.double))


@pytest.mark.parametrize('gate', [None, dict(type='TreeRouter')])
@pytest.mark.parametrize('bias', [False, True])
def test_inference_without_gradients_is_the_same(gate, bias):
    layer = randomise(PositionMoE2d(8, 6, 1, 2, bias=bias, num_experts=4, gate=gate).eval())
    x = torch.randn(2, 8, 7, 9)
    expected = layer(x)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x.contiguous(memory_format=torch.channels_last)).contiguous(), expected)


def test_all_experts_are_the_dense_weighted_sum():
    layer = randomise(PositionMoE2d(8, 5, num_experts=3, top_k=3).double())
    x = torch.randn(2, 8, 6, 7, dtype=torch.double)
    p = nn.functional.conv2d(x, layer.gate.weight[:, :, None, None], layer.gate.bias).softmax(1)
    dense = sum(p[:, e : e + 1] * nn.functional.conv2d(x, layer.weight[e]) for e in range(3)) + layer.bias.view(-1, 1, 1)
    torch.testing.assert_close(layer(x), dense)


@pytest.mark.parametrize('mixed', [False, True])
def test_all_positions_one_expert_or_single_positions_apart(mixed):
    """The blocks that experts get: everything, nothing, one position."""
    layer = randomise(PositionMoE2d(4, 4, num_experts=4).double().eval())
    with torch.no_grad():
        layer.gate.bias.copy_(torch.tensor([0.0, 0.0, 50.0, 0.0]))
        x = torch.randn(2, 4, 3, 3, dtype=torch.double)
        if mixed:
            layer.gate.weight.zero_()
            layer.gate.weight[1, 0] = 10
            x[:, 0] = 0
            x[1, 0, 2, 1] = 9
        p = layer.route(x.permute(0, 2, 3, 1).reshape(-1, 4))
        assert torch.bincount(p.argmax(1), minlength=4).tolist() == ([0, 1, 17, 0] if mixed else [0, 0, 18, 0])
        torch.testing.assert_close(layer(x), naive(layer, x))


@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('make', [lambda: PositionMoE2d(16, 16, num_experts=4), lambda: PositionFFN2d(16, 32)])
def test_memory_format_batch_order_and_repeats_do_not_matter(make, channels_last):
    layer, x = randomise(make()), torch.randn(3, 16, 5, 7)
    expected = layer(x)
    assert torch.equal(layer(x), expected) and expected.is_contiguous()
    if channels_last:
        y = layer(x.contiguous(memory_format=torch.channels_last))
        assert y.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(y, expected)
    torch.testing.assert_close(torch.cat([layer(image[None]) for image in x]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('top_k', [1, 2])
def test_gradients_are_the_same_every_time_and_reach_gate_and_experts(top_k):
    layer, x = randomise(PositionMoE2d(16, 16, num_experts=4, top_k=top_k)), torch.randn(2, 16, 9, 9)

    def step():
        layer.zero_grad()
        layer(x).square().mean().backward()
        return [p.grad.clone() for p in layer.parameters()]

    first, second = step(), step()
    assert all(torch.equal(a, b) and a.any() for a, b in zip(first, second))


def test_half_precision():
    layer, x = randomise(PositionMoE2d(16, 16, num_experts=4)), torch.randn(2, 16, 6, 6)
    expected = layer(x)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        y = layer(x)
        y.float().square().mean().backward()
    assert y.dtype == torch.bfloat16 and all(p.grad.isfinite().all() for p in layer.parameters())
    close = (y.float() - expected).abs().amax(1) < 0.1 * expected.abs().max()
    assert close.float().mean() > 0.9  # a position between two experts may change sides


def test_a_static_kernel_starts_the_experts():
    static = nn.Conv2d(8, 6, 1)
    layer = PositionMoE2d(8, 6, num_experts=4, top_k=2)
    layer.load_state_dict(static.state_dict(), strict=False)
    x = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(layer(x), static(x))


def test_balance_loss_is_collected_and_evens_out_the_use():
    layer, x = PositionMoE2d(8, 4, num_experts=4), torch.randn(2, 8, 16, 16)
    with torch.no_grad():
        layer.gate.bias[2] = 3.0
    optimizer = torch.optim.SGD(layer.gate.parameters(), lr=0.3)
    for _ in range(150):
        with collect_losses(routed_layers(layer)) as totals:
            layer(x)
            loss = totals()['moe_balance']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert layer.share.max() < 0.6 and layer.share.min() > 0.02
    assert sum(layer.rates().values()) == pytest.approx(1, abs=1e-4)


def test_an_empty_batch_has_a_shape_and_a_graph():
    layer = PositionMoE2d(4, 6)
    y = layer(torch.zeros(0, 4, 3, 3))
    y.sum().backward()
    assert y.shape == (0, 6, 3, 3) and layer.weight.grad is not None


def test_state_dict_round_trip():
    layer, other = (
        randomise(PositionMoE2d(4, 4, gate=dict(type='TreeRouter'))).eval(),
        PositionMoE2d(4, 4, gate=dict(type='TreeRouter')),
    )
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer))
    x = torch.randn(1, 4, 5, 5)
    assert torch.equal(other.eval()(x), layer(x))


def test_takes_the_place_of_convolutions_in_a_net():
    net = ResNet(50, base_channels=8, norm_eval=False)
    swap_convs(net, dict(type='PositionMoE2d', num_experts=2), include=['layer[34].*.conv[13]'])
    assert sum(isinstance(m, PositionMoE2d) for m in net.modules()) == 18
    net(torch.randn(2, 3, 64, 64))[-1].mean().backward()
    assert isinstance(build_conv_layer(dict(type='PositionMoE2d'), 4, 4, 1), PositionMoE2d)
    module = ConvModule(4, 4, 1, conv_cfg=dict(type='PositionMoE2d', top_k=2), norm_cfg=dict(type='BN'))
    assert module(torch.randn(2, 4, 3, 3)).shape == (2, 4, 3, 3)


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(kernel_size=3), 'kernel_size=3, padding=0, groups=1 must be 1, 0, 1'),
        (dict(padding=1), 'padding=1'),
        (dict(groups=2), 'groups=2'),
        (dict(num_experts=0), 'num_experts=0 must be a whole number'),
        (dict(num_experts=4, top_k=5), 'top_k=5 must be a whole number between 1 and num_experts=4'),
        (dict(top_k=0), 'top_k=0'),
        (dict(top_k=2, gate=dict(type='TreeRouter')), 'a tree leads to one leaf'),
        (dict(num_experts=3, gate=dict(type='TreeRouter')), 'num_experts=3 must be a power of two'),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        PositionMoE2d(4, 4, **options)

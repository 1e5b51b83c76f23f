import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.cnn import build_plugin_layer
from mmdet.models.backbones import ResNet
from mmengine.registry import MODELS
from torch import nn

from mmkerneldna.deploy import deploy
from mmkerneldna.routing import RoutingAttention2d, RoutingNeck
from mmkerneldna.routing.routing_attention import join_regions, split_regions


def build(channels=8, **options):
    layer = RoutingAttention2d(channels, **options).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer


def naive(layer, x):
    """Full attention over all positions, with a mask that leaves each its region's best regions; one image at a time."""
    return torch.stack([naive_image(layer, image) for image in x])


def naive_image(layer, image):
    channels, height, width = image.shape
    tokens = image.flatten(1).t()
    q, k, v = layer.qkv(layer.norm(tokens)).chunk(3, 1)
    columns = -(-width // layer.region)
    place = torch.arange(height * width)
    region = place // width // layer.region * columns + place % width // layer.region
    count = int(region.max()) + 1
    means = [torch.stack([t[region == r].mean(0) for r in range(count)]) for t in (q, k)]
    order = (means[0] @ means[1].t()).argsort(dim=1, descending=True, stable=True)[:, : layer.top_k]
    allowed = torch.zeros(count, count, dtype=torch.bool).scatter(1, order, True)[region][:, region]
    outputs = []
    for qh, kh, vh in zip(*(t.chunk(layer.num_heads, 1) for t in (q, k, v))):
        scores = (qh @ kh.t()) / (channels / layer.num_heads) ** 0.5
        outputs.append(scores.masked_fill(~allowed, -torch.inf).softmax(1) @ vh)
    y = torch.cat(outputs, 1)
    if layer.local is not None:
        y = y + layer.local(v.t().view(1, channels, height, width))[0].flatten(1).t()
    return image + layer.project(y).t().view_as(image)


@settings(deadline=None, max_examples=30)
@given(
    region=st.integers(1, 4),
    top_k=st.integers(1, 5),
    heads=st.sampled_from([1, 2, 4]),
    local=st.sampled_from([0, 3]),
    shape=st.tuples(st.integers(1, 2), st.just(8), st.integers(1, 9), st.integers(1, 9)),
)
def test_matches_full_attention_with_a_mask(region, top_k, heads, local, shape):
    layer = build(region=region, top_k=top_k, num_heads=heads, local_kernel=local)
    x = torch.randn(shape, dtype=torch.double, requires_grad=True)
    actual, expected = layer(x), naive(layer, x)
    torch.testing.assert_close(actual, expected)
    tensors = [x, *layer.parameters()]
    cotangent = torch.randn_like(actual)
    for ours, theirs in zip(*(torch.autograd.grad(y, tensors, cotangent) for y in (actual, expected))):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize('size', [(8, 12), (7, 10)])
def test_all_regions_are_full_attention(size):
    layer = build(region=4, top_k=6)
    x = torch.randn(2, 8, *size, dtype=torch.double)
    q, k, v = layer.qkv(layer.norm(x.flatten(2).transpose(1, 2))).chunk(3, 2)
    heads = [t.unflatten(2, (8, -1)).transpose(1, 2) for t in (q, k, v)]
    full = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    torch.testing.assert_close(layer(x), x + layer.project(full).transpose(1, 2).view_as(x))


@settings(deadline=None, max_examples=20)
@given(rows=st.integers(1, 3), columns=st.integers(1, 4), region=st.integers(1, 4))
def test_regions_are_squares_row_by_row(rows, columns, region):
    x = torch.randn(2, rows * region, columns * region, 3)
    regions = split_regions(x, region)
    for r in range(rows * columns):
        top, left = r // columns * region, r % columns * region
        assert torch.equal(regions[:, r], x[:, top : top + region, left : left + region].flatten(1, 2))
    assert torch.equal(join_regions(regions, rows * region, columns * region, region), x)


def test_starts_as_the_identity_and_its_gradients_reach_everything():
    layer, x = RoutingAttention2d(16, region=2, top_k=2), torch.randn(2, 16, 6, 6)
    assert torch.equal(layer(x), x)
    nn.init.normal_(layer.project.weight, std=0.1)
    layer(x).square().mean().backward()
    assert all(p.grad.any() for p in layer.parameters())


def test_memory_format_and_half_precision():
    layer, x = build(16, region=4, top_k=2).float(), torch.randn(2, 16, 10, 9)
    y = layer(x)
    z = layer(x.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous() and z.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(z, y)
    layer = RoutingAttention2d(16, region=4, top_k=2)
    nn.init.normal_(layer.project.weight, std=0.1)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        half = layer(x)
        half.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    torch.testing.assert_close(half.float(), layer(x), rtol=0.1, atol=0.1)


def test_memory_grows_linearly():
    """The largest tensor of a pass: four times the positions, four times the bytes (full attention: sixteen)."""

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for leaf in torch.utils._pytree.tree_leaves(out):
                if isinstance(leaf, torch.Tensor):
                    Largest.size = max(Largest.size, leaf.numel())
            return out

    layer, sizes = RoutingAttention2d(16, region=8, top_k=4), []
    for side in (64, 128):
        with torch.no_grad(), Largest():
            Largest.size = 0
            layer(torch.randn(1, 16, side, side))
        sizes.append(Largest.size)
    assert sizes[1] == 4 * sizes[0] and sizes[0] <= 4 * 64 * 64 * 16 * 2


PLUGIN = dict(type='RoutingAttention2d', region=4, top_k=2)


def test_as_a_plugin_of_a_resnet_and_deployed():
    plugin = dict(cfg=PLUGIN, stages=(False, False, True, True), position='after_conv3')
    net = ResNet(50, base_channels=8, plugins=[plugin], norm_eval=False)
    net.init_weights()
    layers = [m for m in net.modules() if isinstance(m, RoutingAttention2d)]
    assert len(layers) == 9
    for layer in layers:
        nn.init.normal_(layer.project.weight, std=0.02)
    net(torch.randn(2, 3, 72, 104))[-1].mean().backward()
    net.eval()
    fast, x = deploy(net), torch.randn(1, 3, 72, 104)
    with torch.no_grad():
        for ours, theirs in zip(fast(x), net(x)):
            assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()
    assert build_plugin_layer(PLUGIN, in_channels=8)[0] == 'routing_attention'


def test_as_a_neck():
    neck = MODELS.build(dict(type='RoutingNeck', in_channels=8, levels=[1, 2], region=2, top_k=1))
    features = tuple(torch.randn(1, 8, side, side) for side in (8, 6, 3))
    for layer in neck.attention.values():
        nn.init.normal_(layer.project.weight)
    outputs = neck(features)
    assert outputs[0] is features[0] and not any(torch.equal(o, f) for o, f in zip(outputs[1:], features[1:]))
    torch.testing.assert_close(outputs[1], neck.attention['1'](features[1]))
    with pytest.raises(ValueError, match=r'levels=\[1, 2\] of RoutingNeck: the neck before it has 2 levels'):
        neck(features[:2])
    for levels in ([], [-1], [1, 1]):
        with pytest.raises(ValueError, match='must be different places'):
            RoutingNeck(8, levels)


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(region=0), 'region=0 of RoutingAttention2d'),
        (dict(top_k=0), 'top_k=0'),
        (dict(top_k=1.5), 'top_k=1.5'),
        (dict(num_heads=3), 'num_heads=3 does not divide in_channels=8'),
        (dict(local_kernel=4), 'local_kernel=4 must be odd'),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        RoutingAttention2d(8, **options)


def test_refuses_a_map_that_regions_do_not_divide_when_told_not_to_pad():
    with pytest.raises(ValueError, match='regions of 4x4 do not divide a map of 8x6; set pad=True'):
        RoutingAttention2d(8, region=4, pad=False)(torch.zeros(1, 8, 8, 6))

"""Experts in the place of perceptrons: of mmpretrain's form, of timm's, and in a segmenter around timm's ConvNeXt."""

import copy
from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import nn

from mmkerneldna.hooks import RoutingLossHook
from mmkerneldna.launch.routing_record import record_routing
from mmkerneldna.layers.match import SwapError
from mmkerneldna.routing import PositionFFN2d, swap_ffns


def randomise(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


class Block(nn.Module):
    """As a block of mmpretrain's ConvNeXt with linear_pw_conv=False."""

    def __init__(self, channels=6):
        super().__init__()
        self.depthwise_conv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.GroupNorm(1, channels)
        self.pointwise_conv1 = nn.Conv2d(channels, 4 * channels, 1)
        self.act = nn.GELU()
        self.pointwise_conv2 = nn.Conv2d(4 * channels, channels, 1)

    def forward(self, x):
        y = self.norm(self.depthwise_conv(x))
        return x + self.pointwise_conv2(self.act(self.pointwise_conv1(y)))


class ResponseNorm(nn.Module):
    """Of ConvNeXt V2: a channel by its norm over the map, against that of the other channels."""

    def __init__(self, channels, last):
        super().__init__()
        self.last = last
        self.weight, self.bias = nn.Parameter(torch.randn(channels)), nn.Parameter(torch.randn(channels))

    def forward(self, x):
        y = x if self.last else x.movedim(1, -1)
        size = y.square().sum((1, 2), keepdim=True).sqrt()
        y = y + self.weight * (y * size / (size.mean(-1, keepdim=True) + 1e-6)) + self.bias
        return y if self.last else y.movedim(-1, 1)


class Mlp(nn.Module):
    """As timm's, inside of a residual block."""

    def __init__(self, channels=6, conv=False, norm=False):
        super().__init__()
        layer = (lambda a, b: nn.Conv2d(a, b, 1)) if conv else nn.Linear
        self.fc1 = layer(channels, 3 * channels)
        self.act = nn.GELU()
        self.drop1 = nn.Dropout(0.0)
        if norm:
            self.grn = ResponseNorm(3 * channels, last=not conv)
        self.fc2 = layer(3 * channels, channels)

    def forward(self, x):
        x = self.drop1(self.act(self.fc1(x)))
        return self.fc2(self.grn(x) if hasattr(self, 'grn') else x)


class TimmBlock(nn.Module):
    def __init__(self, conv, norm):
        super().__init__()
        self.last, self.mlp = not conv, Mlp(conv=conv, norm=norm)

    def forward(self, x):
        return x + (self.mlp(x.movedim(1, -1)).movedim(-1, 1) if self.last else self.mlp(x))


FORMS = {
    'mmpretrain': Block,
    'timm, linear': lambda: TimmBlock(False, False),
    'timm, convolutions': lambda: TimmBlock(True, False),
    'timm V2, linear': lambda: TimmBlock(False, True),
    'timm V2, convolutions': lambda: TimmBlock(True, True),
}


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('options', [{}, dict(top_k=2), dict(gate=dict(type='TreeRouter'))], ids=['one', 'two', 'tree'])
def test_swapped_perceptrons_start_as_the_dense_ones(form, options):
    def dense():
        return randomise(nn.Sequential(FORMS[form](), FORMS[form]())).double().eval()

    static = dense()
    x = torch.randn(2, 6, 9, 8, dtype=torch.double)
    net = swap_ffns(copy.deepcopy(static), num_experts=4, **options)
    assert sum(isinstance(m, PositionFFN2d) for m in net.modules()) == 2
    torch.testing.assert_close(net(x), static(x))
    other = dense()  # weights that come later
    state = other.state_dict()
    size = len(state)
    assert not net.load_state_dict(state).missing_keys and len(state) == size
    torch.testing.assert_close(net(x), other(x))
    randomise(net)
    again = swap_ffns(dense(), num_experts=4, **options)
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(x), net(x))


@pytest.mark.parametrize('top_k', [1, 2, 3])
def test_a_response_norm_sees_the_hidden_map_of_each_rank(top_k):
    """Against a loop: the hidden vectors of all positions, the norm over the map that they make, the second layers."""
    mlp = Mlp(conv=True, norm=True).double()
    layer = randomise(swap_ffns(nn.Sequential(mlp), num_experts=3, top_k=top_k))[0].fc1
    x = torch.randn(2, 6, 3, 4, dtype=torch.double, requires_grad=True)
    p = torch.softmax(torch.einsum('ec,nchw->nhwe', layer.gate.weight, x) + layer.gate.bias, -1)
    places = [(n, i, j) for n in range(2) for i in range(3) for j in range(4)]
    expected = torch.zeros(2, 6, 3, 4, dtype=torch.double)
    for rank in range(top_k):
        expert = {place: int(p[place].argsort(descending=True)[rank]) for place in places}
        hidden = torch.zeros(2, 18, 3, 4, dtype=torch.double)
        for (n, i, j), e in expert.items():
            hidden[n, :, i, j] = nn.functional.gelu(layer.weight1[e] @ x[n, :, i, j] + layer.bias1[e])
        hidden = layer.between(hidden)
        for (n, i, j), e in expert.items():
            expected[n, :, i, j] = expected[n, :, i, j] + p[n, i, j, e] * (layer.weight2[e] @ hidden[n, :, i, j])
    expected = expected + layer.bias2.view(-1, 1, 1)
    torch.testing.assert_close(layer(x), expected)
    cotangent = torch.randn_like(expected)
    tensors = [x, layer.weight1, layer.weight2, layer.between.weight, layer.gate.weight]
    for ours, theirs in zip(*(torch.autograd.grad(y, tensors, cotangent) for y in (layer(x), expected))):
        torch.testing.assert_close(ours, theirs)


def test_swap_refuses_what_is_no_perceptron():
    mixed = nn.Sequential(Block())
    mixed[0].pointwise_conv1 = nn.Linear(6, 24)
    with pytest.raises(SwapError, match=r'0.pointwise_conv2 is Conv2d.*two plain 1x1 Conv2d, or two Linear'):
        swap_ffns(mixed)
    with pytest.raises(SwapError, match=r"no block with .*pointwise_conv2 or fc1 and fc2 that include=\['stages"):
        swap_ffns(nn.Sequential(Block()), include=['stages.*'])
    gated = Mlp()
    gated.fc1 = nn.Linear(6, 36)
    with pytest.raises(SwapError, match=r'0.fc1 is Linear\(in_features=6, out_features=36.*a gated perceptron'):
        swap_ffns(nn.Sequential(gated))
    between, block = Mlp(), Block()
    between.drop1, block.grn = nn.LayerNorm(18), ResponseNorm(24, False)
    for module, name in ((between, 'drop1'), (block, 'grn')):
        before = list(module.state_dict())
        with pytest.raises(SwapError, match=f'0.{name} is .*only an activation is known'):
            swap_ffns(nn.Sequential(module))
        assert list(module.state_dict()) == before


@pytest.mark.parametrize('form', ['timm, linear', 'timm, convolutions'])
def test_decisions_are_recorded_as_a_map(form):
    net = swap_ffns(nn.Sequential(FORMS[form]()).eval())
    with torch.no_grad(), record_routing(net) as record:
        net(torch.randn(1, 6, 5, 7))
    assert record.sizes == {'0.mlp.fc1': (5, 7)} and record.chosen['0.mlp.fc1'].shape == (35,)


def segmenter(**options):
    """UPerNet's shape at the size of a toy."""
    dims = (8, 16, 24, 32)
    inner = dict(type='TIMMBackbone', model_name='convnext_tiny', pretrained=False, depths=(1, 1, 2, 1), dims=dims, **options)
    return dict(
        type='EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor', size=(64, 64)),
        backbone=dict(type='PositionFFNs', num_experts=4, include=['*stages_[23].*'], module=inner),
        decode_head=dict(
            type='FCNHead', in_channels=32, in_index=3, channels=8, num_convs=1, num_classes=3, concat_input=False
        ),
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
    )


def segmentation_batch(images):
    meta = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), (64, 64))
    labels = torch.randint(0, 3, (len(images), 1, 64, 64))
    return [SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=label)) for label in labels]


def step(model, images):
    """Gradients of one training step under the hook; returns its losses."""
    hook = RoutingLossHook()
    hook.before_train(SimpleNamespace(model=model, iter=0, max_iters=1))
    losses = model.loss(images, segmentation_batch(images))
    hook.after_train(None)
    sum(value for name, value in losses.items() if 'loss' in name).backward()
    return losses


@pytest.mark.parametrize('options', [{}, dict(conv_mlp=True), dict(use_grn=True)], ids=['linear', 'convolutions', 'V2'])
def test_convnext_of_timm_in_a_segmenter(options):
    pytest.importorskip('timm', reason='timm is optional: pip install timm')
    cfg = segmenter(**options)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg)
        dense = MODELS.build(cfg['backbone']['module'])
    experts = [m for m in model.modules() if isinstance(m, PositionFFN2d)]
    assert len(experts) == 3 and all(m.channel_dim == (1 if 'conv_mlp' in options else -1) for m in experts)
    for parameter in dense.parameters():
        nn.init.normal_(parameter, std=0.2)
    assert not model.backbone.load_state_dict(dense.state_dict(), strict=False).unexpected_keys
    images = torch.randn(2, 3, 64, 64)
    for ours, theirs in zip(model.eval().backbone(images), dense.eval()(images)):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    losses = step(model.train(), images)
    assert {'decode.loss_ce', 'loss_moe_balance'} <= set(losses)
    for layer in experts:
        assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
        assert layer.gate.weight.grad.any() and layer.weight1.grad.any()

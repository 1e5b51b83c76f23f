import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.models.backbones import MobileNetV2, ResNet
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck
from mmdet.models.layers import InvertedResidual
from mmseg.models.utils import InvertedResidual as SegInvertedResidual
from torch import nn

from mmkerneldna.backbones import KDNAResNet
from mmkerneldna.deploy import deploy
from mmkerneldna.errors import UsageError
from mmkerneldna.layers import swap_convs
from mmkerneldna.routing import decisions, keep_all, set_keep, sparse_blocks
from mmkerneldna.routing.positions import compute_positions, is_known
from mmkerneldna.routing.sparse_blocks import radius_of, why_not_local
from mmkerneldna.routing.tiles import compute_tiles
from mmkerneldna.sharing import share_kernels

BLOCKS = {
    'basic': lambda: BasicBlock(8, 8),
    'basic, dilated': lambda: BasicBlock(8, 8, dilation=2),
    'bottleneck': lambda: Bottleneck(8, 2),
    'bottleneck, dilated': lambda: Bottleneck(8, 2, dilation=2),
    'inverted, mmdet': lambda: InvertedResidual(8, 8, 16),
    'inverted, not expanded': lambda: InvertedResidual(8, 8, 8, with_expand_conv=False),
    'inverted, mmseg': lambda: SegInvertedResidual(8, 8, 1, 2, dilation=2),
}


class ConvNeXtBlock(nn.Module):
    """Of mmpretrain's form: depthwise 7x7, layer norm over channels, two linear maps, a scale."""

    def __init__(self, channels):
        super().__init__()
        self.depthwise_conv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.pointwise_conv1, self.pointwise_conv2 = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels)
        self.act, self.gamma = nn.GELU(), nn.Parameter(torch.full((channels,), 0.5))

    def forward(self, x):
        y = self.norm(self.depthwise_conv(x).permute(0, 2, 3, 1))
        return x + (self.gamma * self.pointwise_conv2(self.act(self.pointwise_conv1(y)))).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    def __init__(self, depths=(2, 3)):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.stages = nn.ModuleList([nn.Sequential(*(ConvNeXtBlock(8) for _ in range(d))) for d in depths])

    def forward(self, x):
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return (x,)


BLOCKS['convnext'] = lambda: ConvNeXtBlock(8)


def reference(x, blocks, keep, tile):
    """Every block on the whole map, taken at the kept positions only."""
    mask = F.interpolate(keep.float(), scale_factor=tile)[:, :, : x.shape[2], : x.shape[3]]
    for block in blocks:
        x = mask * block(x) + (1 - mask) * x
    return x


def some_kept(shape, kind, generator):
    keep = torch.rand(shape, generator=generator) < 0.3
    if kind == 'one' or not keep.any():
        keep = torch.zeros(shape, dtype=torch.bool)
        keep.view(-1)[torch.randint(keep.numel(), (1,), generator=generator)] = True
    return torch.ones(shape, dtype=torch.bool) if kind == 'all' else keep


def run_of(name, length):
    blocks = [randomise(BLOCKS[name]()).eval() for _ in range(length)]
    return blocks, max(map(radius_of, blocks))


@settings(deadline=None, max_examples=20)
@given(
    name=st.sampled_from(list(BLOCKS)),
    length=st.integers(1, 3),
    tile=st.sampled_from([4, 8]),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    kind=st.sampled_from(['one', 'some', 'all']),
    last=st.booleans(),
    seed=st.integers(0, 1000),
)
@torch.no_grad()
def test_tiles_are_what_the_dense_blocks_compute_there(name, length, tile, size, kind, last, seed):
    blocks, halo = run_of(name, length)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 8, *size, generator=generator).relu()
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    keep = some_kept((2, 1, -(-size[0] // tile), -(-size[1] // tile)), kind, generator)
    expected = reference(x, blocks, keep, tile)
    y = compute_tiles(x, keep, tile, halo, blocks)
    if y is not None:  # windows as large as the map are left to the dense way
        assert_same(y, expected)


@torch.no_grad()
def test_tiles_save_what_they_should():
    """A tenth of the tiles: the block sees their windows and no more."""
    block, seen = randomise(BasicBlock(8, 8)).eval(), []
    block.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    keep = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    keep[0, 0, 0, 0] = keep[0, 0, 3, 4] = keep[0, 0, 7, 7] = True
    assert compute_tiles(torch.randn(1, 8, 64, 64), keep, 8, 2, [block]) is not None
    assert seen == [(3, 8, 12, 12)]


@settings(deadline=None, max_examples=20)
@given(
    name=st.sampled_from([name for name in BLOCKS if name != 'convnext']),
    length=st.integers(1, 3),
    size=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    kind=st.sampled_from(['one', 'some', 'all']),
    seed=st.integers(0, 1000),
)
@torch.no_grad()
def test_positions_are_what_the_dense_blocks_compute_there(name, length, size, kind, seed):
    blocks, _ = run_of(name, length)
    generator = torch.Generator().manual_seed(seed)
    x, keep = torch.randn(2, 8, *size, generator=generator).relu(), some_kept((2, 1, *size), kind, generator)
    expected = reference(x, blocks, keep, 1)
    assert_same(compute_positions(x, keep, blocks), expected)


@torch.no_grad()
def test_blocks_of_different_reach_share_a_run_of_positions_and_products_follow_the_weights():
    blocks = [randomise(make()).eval() for make in (BLOCKS['bottleneck'], BLOCKS['bottleneck, dilated'], BLOCKS['basic'])]
    x, keep = torch.randn(1, 8, 9, 11).relu(), torch.rand(1, 1, 9, 11) < 0.4
    for _ in range(2):
        assert_same(compute_positions(x.clone(), keep, blocks), reference(x, blocks, keep, 1))
        for block in blocks:
            randomise(block)
            nn.init.normal_(block.conv2.weight)


def resnet(depth=18, cls=ResNet, **kwargs):
    torch.manual_seed(0)
    net = randomise(cls(depth=depth, base_channels=8, **kwargs))
    net.eval()
    return net


def gated(net, std=0.5, **kwargs):
    """With gates that differ from place to place."""
    sparse_blocks(net, **dict(dict(keep=0.5, tile=8), **kwargs))
    for gate in net.routing_gates.values():
        nn.init.normal_(gate.fc.weight, std=std)
    net.eval()
    return net


CASES = {
    'resnet': lambda: resnet(frozen_stages=1),
    'KernelDNA': lambda: resnet(18, KDNAResNet),
    'mobilenet': lambda: randomise(MobileNetV2(0.25, out_indices=(1, 2, 4))),
    'convnext': lambda: ConvNeXt(),
}


@pytest.mark.parametrize('tile', [1, 8])
@pytest.mark.parametrize('case', CASES)
def test_a_net_with_gates_equals_masks_on_the_dense_one(case, tile):
    if case == 'convnext' and tile == 1:
        pytest.skip('tile=1 refuses it, see below')
    net = gated(CASES[case](), tile=tile)
    images = torch.randn(2, 3, 59, 75)
    with torch.no_grad():
        with decisions(net) as seen:
            net(images)
            some = seen._logits().median().item()
        for threshold in (-100.0, some, 100.0):  # all, some, none kept
            for gate in net.routing_gates.values():
                gate.set_threshold(threshold)
            sparse = net(images)
            with decisions(net) as seen:
                net(images)
                rate = seen.rate()
            assert {-100.0: rate == 1, some: 0 < rate < 1, 100.0: rate == 0}[threshold]
            with torch.enable_grad():
                assert_same(sparse, net(images.clone().requires_grad_()))  # gradients are wanted: dense, and masked
        with keep_all(net):
            full = net(images)
    plain = CASES[case]()
    plain.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith('routing_gates.')})
    plain.eval()
    with torch.no_grad():
        assert_same(full, plain(images))


def test_which_blocks_are_behind_which_gate():
    net = gated(resnet(50), stages=(0, 2))
    assert list(net.routing_gates) == ['layer1_1', 'layer3_1']
    assert [gate.cost for gate in net.routing_gates.values()] == [2, 5]
    net = gated(resnet(50), stages=(2,), run=2)
    assert list(net.routing_gates) == ['layer3_1', 'layer3_3', 'layer3_5']
    net = gated(resnet(18, KDNAResNet))  # blocks with children look at the whole map
    assert list(net.routing_gates) == ['layer1_1', 'layer2_1']
    net = gated(share_kernels(resnet(34), {'layer1.1.conv1': 'layer1.2.conv1'}), blocks=['layer1.2'])
    assert list(net.routing_gates) == ['layer1_2']


@pytest.mark.parametrize('tile', [1, 8])
def test_training_is_the_dense_net_times_the_mask_and_reaches_every_gate(tile):
    net = gated(resnet(norm_eval=True), tile=tile, full=0.0)
    net.train()
    images, masks = torch.randn(2, 3, 70, 64), {}
    for name, gate in net.routing_gates.items():
        draw = gate.draw
        gate.draw = lambda x, name=name, draw=draw: masks.setdefault(name, draw(x))
    outputs = net(images)
    assert all(set(mask.detach().unique().tolist()) <= {0.0, 1.0} for mask in masks.values())
    x = net.maxpool(net.relu(net.norm1(net.conv1(images))))
    for index in range(1, 5):
        first, second = getattr(net, f'layer{index}').children()
        x = reference(first(x), [second], masks[f'layer{index}_1'], tile)
        assert_same(outputs[index - 1], x)
    sum(o.square().mean() for o in outputs).backward()
    assert all(p.grad is not None and p.grad.any() for p in net.routing_gates.parameters())


@pytest.mark.parametrize('tile', [1, 8])
def test_deploy_keeps_the_gates_and_folds_the_rest(tile):
    net = gated(resnet(), tile=tile)
    images = torch.randn(1, 3, 101, 96)
    set_keep(net, 0.4, images)
    lean = deploy(net)
    assert lean.deploy_report.norms_left == {} and lean.deploy_report.steps_fused >= 16
    with torch.no_grad():
        assert_same(lean(images), net(images), 1e-4)
        with decisions(lean) as seen:
            lean(images)
            assert 0 < seen.rate() < 1
    assert set_keep(lean, 0.2, images) < 0.4


@pytest.mark.parametrize('tile', [1, 8])
def test_half_precision(tile):
    net = gated(resnet(), tile=tile)
    images = torch.randn(1, 3, 96, 96)
    set_keep(net, 0.5, images)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        sparse = net(images)[0]
        with torch.enable_grad():
            dense = net(images.clone().requires_grad_())[0]
    assert sparse.dtype == dense.dtype == torch.bfloat16
    assert_same(sparse.float(), dense.float().detach(), 0.03)
    net.train()
    with torch.autocast('cpu', torch.bfloat16):
        sum(o.float().square().mean() for o in net(images)).backward()
    assert all(torch.isfinite(p.grad).all() for p in net.routing_gates.parameters())


def test_refuses():
    for tile in (0, 7, None, 'auto'):
        with pytest.raises(UsageError, match='must be one of'):
            sparse_blocks(resnet(), 0.5, tile=tile)
    for keep in (0, 1.2, -1):
        with pytest.raises(UsageError, match=r'must lie in \(0, 1\]'):
            sparse_blocks(resnet(), keep)
    for run in (0, -1, True, 1.5):
        with pytest.raises(UsageError, match='must be a number of blocks'):
            sparse_blocks(resnet(), 0.5, run=run)
    with pytest.raises(UsageError, match=r'tile=1 does not know stages\.0\.1, a ConvNeXtBlock'):
        sparse_blocks(ConvNeXt(), 0.5, tile=1)
    swapped = swap_convs(resnet(), dict(type='SEConv2d'), include=['layer2.1.conv2'])
    with pytest.raises(UsageError, match=r'layer2\.1 must always run: its SEConv2d may look at the whole map'):
        sparse_blocks(swapped, 0.5, blocks=['layer2.1'])
    assert why_not_local(InvertedResidual(8, 8, 16, se_cfg=dict(channels=16))) and not is_known(ConvNeXtBlock(4))
    late = gated(resnet())
    swap_convs(late, dict(type='SEConv2d'), include=['layer1.1.conv2'])
    late.eval()
    with pytest.raises(UsageError, match='was changed after it was built'), torch.no_grad():
        for gate in late.routing_gates.values():
            gate.set_threshold(3.0)
        late(torch.randn(1, 3, 96, 96))

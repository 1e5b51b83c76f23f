"""Every rival, built from a static checkpoint: the features it starts at, that it learns from there, and what is left alone."""

import copy

import pytest
import torch
from conv_cases import randomise
from mmcv.cnn.bricks import build_conv_layer
from mmdet.models import MobileNetV2, ResNet
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmkerneldna.backbones import KDNAResNet
from mmkerneldna.layers import KWConv2d, swap_convs
from mmkerneldna.layers.pooled_norm import CALIBRATION_BATCHES

#: Rival -> its layer. All of them start at the static features, to rounding: the largest error of a level is below EXACT.
RIVALS = {
    'se': dict(type='SEConv2d'),
    'condconv8x': dict(type='CondConv2d', num_experts=8),
    'dyconv4x': dict(type='DyConv2d', num_experts=4),
    'dcd': dict(type='DCDConv2d'),
    'odconv4x': dict(type='ODConv2d', num_experts=4),
    'odconv4x at the start of its schedule': dict(type='ODConv2d', num_experts=4, temperature=30.0),
    'kw1x': dict(type='KWConv2d'),
    'kw4x': dict(type='KWConv2d', budget=4),
    'kw1x at the start of its schedule': dict(type='KWConv2d', temperature=1.0),
    'fdconv': dict(type='FDConv2d'),
    'moe': dict(type='MoEConv2d', num_experts=4, top_k=1),
}
EXACT = 1e-3  # relative; the sums of a mixture are rounded, and some fifty layers carry it on
NETS = {
    'r18': lambda **options: ResNet(18, base_channels=16, **options),
    'r50': lambda **options: ResNet(50, base_channels=16, **options),
    'mv2': lambda **options: MobileNetV2(0.5, out_indices=(1, 2, 4, 6), **options),
}


@pytest.fixture(scope='module')
def static_nets():
    """{net: (state dict, images, features of each level)}: norms of random scale whose statistics are those of images."""
    nets = {}
    for name, build in NETS.items():
        torch.manual_seed(1)
        net = build(norm_eval=False)
        norms = [m for m in net.modules() if isinstance(m, _BatchNorm)]
        for norm in norms:
            norm.momentum = None
            nn.init.uniform_(norm.weight, 0.5, 1.2)
            nn.init.normal_(norm.bias, std=0.1)
        net.train()
        with torch.no_grad():
            net(torch.randn(4, 3, 64, 64))
            net.eval()
            images = torch.randn(2, 3, 64, 64)
            nets[name] = net.state_dict(), images, net(images)
    return nets


def seeded(state, build, conv, **options):
    net = swap_convs(build(norm_eval=True), conv, **options)
    result = net.load_state_dict(state, strict=False)
    assert not result.unexpected_keys
    return net


def worst_level(features, expected):
    return max(((y - e).norm() / e.norm()).item() for y, e in zip(features, expected))


@pytest.mark.parametrize('net', NETS)
@pytest.mark.parametrize('rival', RIVALS)
def test_starts_at_the_static_features(static_nets, rival, net):
    if (rival, net) == ('fdconv', 'mv2'):
        include = dict(include=['*.expand_conv.*', '*.linear_conv.*'])  # the paper has no MobileNetV2
    else:
        include = {}
    state, images, expected = static_nets[net]
    dynamic = seeded(state, NETS[net], RIVALS[rival], **include)
    assert sum(type(m).__name__ == RIVALS[rival]['type'] for m in dynamic.modules()) >= 6
    for training in (False, True):
        dynamic.train(training)
        with torch.no_grad():
            assert worst_level(dynamic(images), expected) < EXACT, training


def test_a_warehouse_smaller_than_the_kernels_has_no_static_kernel():
    """The one that cannot: below a budget of 1 several mixtures of a kernel share a cell."""
    conv, layer = nn.Conv2d(16, 16, 3), KWConv2d(16, 16, 3, budget=0.5, cell_in_ratio=0.5, cell_out_ratio=0.5)
    before = copy.deepcopy(layer.state_dict())
    result = layer.load_state_dict(conv.state_dict(), strict=False)
    assert result.unexpected_keys == ['weight']
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items() if name != 'bias')


@pytest.mark.parametrize('rival', ['dcd', 'moe', 'se', 'odconv4x'])
def test_a_resnet_50_with_frozen_norms_trains_from_there(static_nets, rival):
    state, images, _ = static_nets['r50']
    net = seeded(state, NETS['r50'], RIVALS[rival])
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), 0.001, momentum=0.9)
    losses = []
    targets = [torch.randn_like(y) for y in net(images)]
    for _ in range(6):
        loss = sum((y - t).square().mean() for y, t in zip(net(images), targets))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 35)
        optimizer.step()
    assert max(losses) < 2 * losses[0], losses  # the static net itself goes up and down by a third
    net.eval()
    with torch.no_grad():
        assert all(torch.isfinite(y).all() for y in net(images))


def layer_and_static(rival, bias=True):
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 16, 3, padding=1, bias=bias)
    layer = build_conv_layer(RIVALS[rival], 16, 16, 3, padding=1, bias=bias)
    return layer, conv


@pytest.mark.parametrize('rival', [r for r in RIVALS if 'kw1x at' not in r])
def test_becomes_dynamic(rival):
    """Every parameter learns, and the layer ends as none that a static one could be."""
    layer, conv = layer_and_static(rival, bias=False)
    layer.load_state_dict(conv.state_dict(), strict=False)
    layer.train()
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    optimizer = torch.optim.Adam(layer.parameters(), 0.02)
    for _ in range(12):
        x = torch.randn(4, 16, 8, 8) * torch.rand(4, 16, 1, 1) * 3 + torch.randn(4, 16, 1, 1)
        wanted = conv(x).detach() * (1 + x.mean((2, 3), keepdim=True).tanh())  # the size depends on the image
        loss = (layer(x) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    still = [name for name, p in layer.named_parameters() if torch.equal(p, before[name])]
    assert not still
    if hasattr(layer, 'num_experts') and layer.weight.dim() == 5:
        assert len({tuple(expert.flatten().tolist()) for expert in layer.weight}) == layer.num_experts
    layer.eval()
    a, b = torch.randn(2, 2, 16, 8, 8) + torch.randn(2, 2, 16, 1, 1)
    joint, apart = layer(a + b), layer(a) + layer(b)
    assert (joint - apart).norm() > 1e-3 * apart.norm()


@pytest.mark.parametrize('rival', RIVALS)
@pytest.mark.parametrize('assign', [False, True])
def test_its_own_checkpoint_is_loaded_as_it_is(rival, assign):
    source, _ = layer_and_static(rival)
    randomise(source)
    target, _ = layer_and_static(rival)
    target.load_state_dict(source.state_dict(), assign=assign)
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(target.eval()(x), source.eval()(x))
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in target.state_dict().items())


@pytest.mark.parametrize('rival', RIVALS)
def test_static_weights_may_become_the_parameters(rival):
    layer, conv = layer_and_static(rival)
    kernel, x = conv.weight.clone(), torch.randn(2, 16, 8, 8)
    layer.load_state_dict(conv.state_dict(), strict=False, assign=True)
    torch.testing.assert_close(layer.eval()(x), conv(x), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.dim() == 5:
                parameter[0].zero_()
                assert parameter[1].any()  # the experts lie in memory of their own
    assert torch.equal(conv.weight, kernel)


def statistics(net):
    return {path: torch.cat([m.running_mean, m.running_var]) for path, m in net.named_modules() if isinstance(m, _BatchNorm)}


@pytest.mark.parametrize('kind', ['SEConv2d', 'DCDConv2d', 'ODConv2d', 'KWConv2d', 'FDConv2d'])
@pytest.mark.parametrize('synchronised', [False, True])
def test_norm_eval_freezes_the_norms_of_the_net_alone(kind, synchronised):
    net = ResNet(18, base_channels=16, norm_eval=True, frozen_stages=1)
    theirs = set(statistics(net))
    swap_convs(net, dict(type=kind))
    if synchronised:
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    net.train()
    before = statistics(net)
    net(torch.randn(2, 3, 64, 64))
    after = statistics(net)
    moved = {path for path in before if not torch.equal(before[path], after[path])}
    assert moved == {path for path in set(before) - theirs if not path.startswith('layer1.')} != set()
    net.eval()
    net(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(after[path], value) for path, value in statistics(net).items())


def test_norm_eval_covers_the_gates_of_a_kernel_dna_net():
    net = KDNAResNet(18, base_channels=16).train()
    before = statistics(net)
    net(torch.randn(2, 3, 64, 64))
    assert any('gate' in path for path in before)
    assert all(torch.equal(before[path], value) for path, value in statistics(net).items())


def test_a_norm_that_has_seen_enough_is_frozen():
    layer, x = build_conv_layer(dict(type='SEConv2d'), 16, 16, 3).train(), torch.randn(2, 16, 8, 8)
    layer.gate.norm.eval()
    layer.gate.norm.num_batches_tracked.fill_(CALIBRATION_BATCHES)
    before = statistics(layer)
    layer(x)
    assert all(torch.equal(before[path], value) for path, value in statistics(layer).items())


def test_the_mode_of_a_norm_is_part_of_no_copy():
    layer, x = build_conv_layer(dict(type='DCDConv2d'), 16, 16, 3).train(), torch.randn(2, 16, 8, 8)
    layer.norm_q.eval()
    twin = copy.deepcopy(layer)
    assert torch.equal(layer(x), twin(x))
    assert torch.equal(layer.norm_q.running_mean, twin.norm_q.running_mean) and layer.norm_q.running_mean.any()


@pytest.mark.parametrize('kind', ['SEConv2d', 'DCDConv2d'])
def test_a_calibrating_layer_is_one_graph(kind):
    layer, x = build_conv_layer(dict(type=kind), 16, 16, 3).train(), torch.randn(2, 16, 8, 8)
    for module in layer.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    twin = copy.deepcopy(layer)
    compiled = torch.compile(twin, backend='eager', fullgraph=True)
    for _ in range(3):
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-4, atol=1e-5)
    for path, value in statistics(layer).items():
        torch.testing.assert_close(statistics(twin)[path], value)

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmkerneldna.layers import MoEConv2d
from mmkerneldna.layers.routed import collect_losses
from mmkerneldna.routing import PositionMoE2d, TreeRouter
from mmkerneldna.routing.tree_router import FEW_INPUTS

TREE = dict(type='TreeRouter')


def tree(channels, leaves):
    router = TreeRouter(channels, leaves).double()
    for parameter in router.parameters():
        nn.init.normal_(parameter)
    return router


def naive_leaf(router, x):
    """From the root, one decision after another."""
    node, n = 0, router.num_experts
    while node < n - 1:
        right = router.decisions.weight[node] @ x + router.decisions.bias[node] > 0
        node = 2 * node + (2 if right else 1)
    return node - (n - 1)


def naive_probability(router, x, leaf):
    node, product = leaf + router.num_experts - 1, 1.0
    while node:
        parent = (node - 1) // 2
        value = router.decisions.weight[parent] @ x + router.decisions.bias[parent]
        product = product * torch.sigmoid(value if node == 2 * parent + 2 else -value)
        node = parent
    return product


@settings(deadline=None, max_examples=20)
@given(leaves=st.sampled_from([2, 4, 8, 16]), inputs=st.sampled_from([1, 3, FEW_INPUTS, FEW_INPUTS + 1]))
def test_walks_and_weighs_as_the_definition(leaves, inputs):
    router, x = tree(5, leaves), torch.randn(inputs, 5, dtype=torch.double)
    assert router.walk(x).tolist() == [naive_leaf(router, row) for row in x]
    p = router(x[:2]).exp()
    expected = [torch.stack([naive_probability(router, row, leaf) for leaf in range(leaves)]) for row in x[:2]]
    torch.testing.assert_close(p, torch.stack(expected))
    torch.testing.assert_close(p.sum(1), torch.ones(len(p), dtype=torch.double))


@pytest.mark.parametrize('kind, kernel', [(MoEConv2d, 3), (PositionMoE2d, 1)])
def test_trained_soft_and_walked_hard(kind, kernel):
    layer = kind(4, 5, kernel, num_experts=4, gate=TREE).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(3, 4, 6, 6, dtype=torch.double)
    features = layer.gate_features(x.mean((2, 3)) if kind is MoEConv2d else x.permute(0, 2, 3, 1).reshape(-1, 4))
    every = torch.stack([nn.functional.conv2d(x, w, layer.bias) for w in layer.weight], 1)  # (N, n, C, H, W)
    p, leaves = layer.gate(features).exp(), layer.gate.walk(features)
    hard = nn.functional.one_hot(leaves, 4).double()
    for mode, hardness, weights in ((True, 0, p), (True, 0.25, 0.75 * p + 0.25 * hard), (True, 1, hard), (False, 0, hard)):
        layer.hardness = hardness
        if kind is MoEConv2d:
            expected = (every * weights[:, :, None, None, None]).sum(1)
        else:
            expected = (every * weights.view(3, 6, 6, 4).permute(0, 3, 1, 2)[:, :, None]).sum(1)
        torch.testing.assert_close(layer.train(mode)(x), expected)
    layer.train()(x).square().mean().backward()
    assert layer.gate.decisions.weight.grad.abs().sum(1).gt(0).all() and layer.weight.grad.flatten(1).any(1).all()


def test_a_static_kernel_starts_every_leaf():
    static = nn.Conv2d(4, 4, 3, padding=1)
    layer = MoEConv2d(4, 4, 3, padding=1, gate=TREE)
    layer.load_state_dict(static.state_dict(), strict=False)
    x = torch.randn(2, 4, 6, 6)
    for mode in (True, False):
        torch.testing.assert_close(layer.train(mode)(x), static(x))


def test_a_training_sharpens_and_parts_the_leaves():
    """Two kinds of images with a kernel of their own each: the walked tree does what the soft one learned."""
    kinds = [nn.Conv2d(4, 4, 1, bias=False) for _ in range(2)]
    layer = MoEConv2d(4, 4, 1, bias=False, num_experts=2, gate=TREE)

    def batch(size=16):
        kind, x = torch.arange(size) % 2, torch.randn(size, 4, 6, 6)
        x[torch.arange(size), kind] += 1
        with torch.no_grad():
            return x, kind, torch.stack([kinds[k](image[None])[0] for image, k in zip(x, kind)])

    optimizer = torch.optim.Adam(layer.parameters(), 0.03)
    for step in range(200):
        layer.anneal(step / 200)
        images, _, wanted = batch()
        with collect_losses({'': layer}) as totals:
            loss = (layer(images) - wanted).square().mean() + 0.01 * totals()['moe_balance']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert layer.hardness == 1 and layer.share.min() > 0.3
    x, kind, wanted = batch(32)
    assert (layer.eval()(x) - wanted).square().mean() < 0.05 * wanted.square().mean()
    leaves = layer.gate.walk(layer.gate_features(x.mean((2, 3))))
    assert not 0.1 < (leaves == kind).float().mean() < 0.9


def test_prints_the_shares():
    router = TreeRouter(3, 4)
    with torch.no_grad():
        router.decisions.weight.copy_(torch.tensor([[0.0, 1.0, 0.5], [-2.0, 0.0, 0.25], [0.0, 0.0, 3.0]]))
        router.decisions.bias.copy_(torch.tensor([0.5, 0.0, -1.0]))
    lines = router.describe(torch.tensor([0, 0, 0, 1, 3, 3, 3, 3]), channels=2).splitlines()
    assert lines == [
        '8 inputs: 4 leaves, 2 decisions each',
        '|-- +1.00 c1 +0.50 c2 ... +0.50 <= 0: 50.0 %',
        '|   |-- -2.00 c0 +0.25 c2 ... +0.00 <= 0: leaf 0, 37.5 %',
        '|   `-- else: leaf 1, 12.5 %',
        '`-- else: 50.0 %',
        '    |-- +3.00 c2 +0.00 c0 ... -1.00 <= 0: leaf 2, 0.0 %',
        '    `-- else: leaf 3, 50.0 %',
    ]


@pytest.mark.parametrize('leaves', [0, 1, 3, 6])
def test_refuses(leaves):
    with pytest.raises(ValueError, match=f'num_experts={leaves} must be a power of two'):
        TreeRouter(4, leaves)

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmkerneldna.errors import UsageError
from mmkerneldna.layers.routed import collect_losses, routed_layers
from mmkerneldna.routing import ImageGate, PositionGate, decisions, gumbel_keep, keep_all, keep_gates, set_keep


def test_gumbel_draws_are_hard_and_kept_as_often_as_the_sigmoid_says():
    logits = torch.tensor([-2.0, 0.0, 1.5])
    draws = gumbel_keep(logits.repeat(40000, 1))
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(draws.mean(0), logits.sigmoid(), atol=0.01, rtol=0)


def test_the_gradient_is_that_of_the_soft_draw():
    logits = torch.randn(50, dtype=torch.double, requires_grad=True)
    torch.manual_seed(3)
    weights = torch.randn(50, dtype=torch.double)
    state = torch.get_rng_state()
    (gumbel_keep(logits, 0.7) * weights).sum().backward()
    torch.set_rng_state(state)
    uniform = torch.rand(50, dtype=torch.double)
    soft = ((logits.detach() + uniform.log() - (1 - uniform).log()) / 0.7).sigmoid()
    torch.testing.assert_close(logits.grad, weights * soft * (1 - soft) / 0.7)


@settings(deadline=None, max_examples=30)
@given(height=st.integers(1, 70), width=st.integers(1, 70), batch=st.integers(0, 3))
def test_an_image_gate_decides_once_per_image_at_any_size(height, width, batch):
    gate = ImageGate(8, 0.5).eval()
    x = torch.randn(batch, 8, height, width)
    assert gate.decide(x).shape == (batch, 1, 1, 1)
    steps = (math.ceil(height / 16), math.ceil(width / 16))
    pooled = x[:, :, :: steps[0], :: steps[1]].mean((2, 3))
    features = (pooled - pooled.mean(1, keepdim=True)) / (pooled.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    expected = gate.fc2(gate.fc1(features).relu()).flatten()
    torch.testing.assert_close(gate.logits(x).flatten(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('tile', [1, 3, 8, 16])
def test_a_position_gate_decides_per_tile_also_of_cut_ones(tile):
    gate, x = PositionGate(4, 0.5, tile=tile).eval(), torch.randn(2, 4, 19, 37)
    logits = gate.logits(x)
    assert logits.shape == (2, 1, math.ceil(19 / tile), math.ceil(37 / tile))
    step = tile // 4 if tile % 4 == 0 else 1
    dense = F.conv2d(x, gate.fc.weight[:, :, None, None], gate.fc.bias)
    for row in range(logits.shape[2]):
        for column in range(logits.shape[3]):
            part = dense[:, 0, row * tile : (row + 1) * tile : step, column * tile : (column + 1) * tile : step]
            torch.testing.assert_close(logits[:, 0, row, column], part.mean((1, 2)))


def test_a_new_gate_is_open():
    x = torch.randn(4, 32, 24, 24)
    for gate in (ImageGate(32, 0.3), PositionGate(32, 0.3)):
        assert gate.eval().decide(x).all()
        assert 0.8 < gate.draw(x.repeat(8, 1, 1, 1)).mean() <= 1


def test_the_loss_is_the_squared_distance_of_the_weighted_mean_probability():
    gates = nn.ModuleDict(dict(a=ImageGate(4, 0.5, cost=1.0), b=ImageGate(4, 0.5, cost=3.0), unused=ImageGate(4, 0.5)))
    x = torch.randn(5, 4, 8, 8)
    for gate in gates.values():
        gate.anneal(1)
    with collect_losses(routed_layers(gates)) as totals:
        gates['a'].draw(x)
        gates['b'].draw(x)
        loss = totals()['keep_rate']
    p = {name: gates[name].logits(x).sigmoid().mean() for name in 'ab'}
    assert loss.item() == pytest.approx((((p['a'] + 3 * p['b']) / 4 - 0.5) ** 2).item())
    loss.backward()
    assert gates['a'].fc2.bias.grad.any() and gates['unused'].fc2.bias.grad is None
    assert gates['a'].rates() == {'': 1.0} and routed_layers(gates).keys() == {'a', 'b', 'unused'}


def test_the_loss_alone_brings_the_rate_to_the_target():
    gate, x = PositionGate(4, 0.25), torch.randn(2, 4, 16, 16)
    optimizer = torch.optim.Adam(gate.parameters(), 0.05)
    for step in range(300):
        gate.anneal(step / 300)
        with collect_losses({'gate': gate}) as totals:
            gate.draw(x)
            loss = totals()['keep_rate']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert gate.logits(x).sigmoid().mean().item() == pytest.approx(0.25, abs=0.02)


def test_the_target_comes_down_over_the_first_half():
    gate = ImageGate(4, 0.2)
    for progress, target in ((0, 1), (0.25, 0.6), (0.5, 0.2), (1, 0.2)):
        gate.anneal(progress)
        assert gate.target == pytest.approx(target)


class Net(nn.Module):
    """Two gates, the second of which sees what the first let through."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.gates = nn.ModuleList([PositionGate(8, 0.5), PositionGate(8, 0.5, tile=4)])
        for gate in self.gates:
            nn.init.normal_(gate.fc.weight)

    def forward(self, x):
        x = self.conv(x)
        for gate in self.gates:
            keep = gate.decide(x)
            mask = 1 if keep is None else F.interpolate(keep.float(), x.shape[2:])
            x = x + mask * x.tanh()
        return x


@pytest.mark.parametrize('keep', [0.75, 0.5, 0.1])
def test_any_keep_rate_can_be_set_afterwards(keep):
    net, images = Net().eval(), torch.randn(6, 3, 16, 16)
    reached = set_keep(net, keep, images)
    assert reached == pytest.approx(keep, abs=0.03)
    with decisions(net) as seen:
        net(images)
        assert seen.rate() == pytest.approx(reached, abs=1e-5)
        assert set(seen.rates()) == {'gates.0', 'gates.1'}
        masks = seen.masks()
    assert masks['gates.0'][0].shape == (6, 1, 16, 16)
    mean = sum(m[0].float().mean().item() for m in masks.values()) / 2
    assert mean == pytest.approx(reached, abs=1e-5)
    assert all(gate.seen is None for gate in net.gates)


def test_keep_one_computes_everything_and_asks_no_gate_also_after_loading():
    net, images = Net().eval(), torch.randn(2, 3, 16, 16)
    set_keep(net, 0.3, images)
    assert set_keep(net, 1) == 1
    other = Net().eval()
    other.load_state_dict(net.state_dict())
    for model in (net, other, copy.deepcopy(net)):
        assert all(gate.decide(torch.randn(1, 8, 4, 4)) is None for gate in model.gates)
    set_keep(net, 0.5, images)
    other.load_state_dict(net.state_dict())
    assert not any(gate.always_open for gate in other.gates)


def test_keep_all_lifts_the_gates_for_a_while():
    net, images = Net().eval(), torch.randn(2, 3, 16, 16)
    set_keep(net, 0.3, images)
    sparse = net(images)
    with keep_all(net):
        full = net(images)
    x = net.conv(images)
    for _ in range(2):
        x = x + x.tanh()
    torch.testing.assert_close(full, x)
    torch.testing.assert_close(net(images), sparse)


def test_refuses():
    for keep in (0, -0.5, 1.5, True, 'half'):
        with pytest.raises(UsageError, match=r'must lie in \(0, 1\]'):
            ImageGate(4, keep)
        with pytest.raises(UsageError, match=r'must lie in \(0, 1\]'):
            set_keep(Net(), keep, torch.randn(1, 3, 8, 8))
    with pytest.raises(UsageError, match='tile=0 must be a whole number'):
        PositionGate(4, 0.5, tile=0)
    with pytest.raises(UsageError, match='Conv2d has no gates'):
        set_keep(nn.Conv2d(1, 1, 1), 0.5, torch.randn(1, 1, 4, 4))
    with pytest.raises(UsageError, match=r'keep=0\.5 needs images'):
        set_keep(Net(), 0.5)
    assert keep_gates(nn.Conv2d(1, 1, 1)) == {}

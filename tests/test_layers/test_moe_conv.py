import pytest
import torch
from conv_cases import assert_same_as, conv_cases, naive_conv
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from mmkerneldna.layers import MoEConv2d
from mmkerneldna.layers.expert_gate import SHARE_STEP, balance_loss, most_probable
from mmkerneldna.layers.routed import collect_losses, routed_layers


def naive_moe_conv(layer, x):
    """Every expert on every image; those that are not among the k most probable count zero."""
    outputs = []
    for sample in x:
        pooled = sample.mean((1, 2))
        pooled = (pooled - pooled.mean()) / ((pooled - pooled.mean()).square().mean() + 1e-5).sqrt() / len(pooled) ** 0.5
        p = torch.softmax(layer.gate.weight @ pooled + layer.gate.bias, 0)
        chosen = sorted(range(len(p)), key=lambda e: -p[e].item())[: layer.top_k]
        outputs.append(sum((p[e] if e in chosen else 0) * naive_conv(layer, sample, layer.weight[e]) for e in range(len(p))))
    y = torch.stack(outputs)
    return y if layer.bias is None else y + layer.bias.view(-1, 1, 1)


@settings(deadline=None, max_examples=60)
@given(case=conv_cases(), num_experts=st.integers(1, 4), data=st.data())
def test_matches_the_formula(case, num_experts, data):
    layer = MoEConv2d(**case['conv'], num_experts=num_experts, top_k=data.draw(st.integers(1, num_experts)))
    assert_same_as(layer, naive_moe_conv, case)


@pytest.mark.parametrize('batch', [1, 4])
def test_cost_is_that_of_k_convolutions(batch):
    x = torch.randn(batch, 8, 16, 16)

    def flops(layer):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            layer(x)
        return counter.get_flop_counts()['Global'][torch.ops.aten.convolution]

    one = flops(nn.Conv2d(8, 8, 3))
    assert [flops(MoEConv2d(8, 8, 3, num_experts=8, top_k=k)) for k in (1, 2, 4, 8)] == [one, 2 * one, 4 * one, 8 * one]


@pytest.mark.parametrize('top_k', [1, 2])
def test_equally_probable_experts_take_turns(top_k):
    p = torch.full((3, 4), 0.25)
    weights, chosen = most_probable(p, torch.tensor([0.4, 0.1, 0.3, 0.2]), top_k)
    assert chosen.tolist() == [[1, 3][:top_k]] * 3 and weights.eq(0.25).all()
    assert most_probable(p, torch.full((4,), 0.25), top_k)[1].tolist() == [[0, 1][:top_k]] * 3
    p = torch.tensor([[0.4, 0.1, 0.4, 0.1], [0.1, 0.2, 0.3, 0.4]])
    assert most_probable(p, torch.tensor([0.4, 0.1, 0.3, 0.2]), 1)[1].tolist() == [[2], [3]]


def test_experts_that_start_as_one_static_kernel_part_for_two_kinds_of_images():
    """Each kind of image needs a kernel of its own; the kinds differ in the mean of two channels."""
    kinds = [nn.Conv2d(4, 4, 3, bias=False) for _ in range(2)]
    static = nn.Conv2d(4, 4, 3, bias=False)
    with torch.no_grad():
        static.weight.copy_((kinds[0].weight + kinds[1].weight) / 2)
    layer = MoEConv2d(4, 4, 3, bias=False, num_experts=4).train()
    layer.load_state_dict(static.state_dict(), strict=False)

    def batch(size=8):
        kind = torch.arange(size) % 2
        x = torch.randn(size, 4, 8, 8)
        x[kind == 0, 0] += 1
        x[kind == 1, 1] += 1
        with torch.no_grad():
            return x, kind, torch.stack([kinds[k](image[None])[0] for image, k in zip(x, kind)])

    x, kind, target = batch(32)
    start = (layer(x) - target).square().mean().item()
    assert start == pytest.approx((static(x) - target).square().mean().item(), rel=1e-5)
    optimizer = torch.optim.Adam(layer.parameters(), 0.02)
    for _ in range(200):
        images, _, wanted = batch()
        with collect_losses(routed_layers(layer)) as totals:
            loss = (layer(images) - wanted).square().mean() + 0.01 * totals()['moe_balance']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    layer.eval()
    assert (layer(x) - target).square().mean() < 0.2 * start
    _, chosen = most_probable(layer.route(x.mean((2, 3))), layer.share, 1)
    assert not set(chosen[kind == 0].flatten().tolist()) & set(chosen[kind == 1].flatten().tolist())


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 6), batch=st.integers(1, 5))
def test_balance_loss_is_one_when_balanced_and_n_when_collapsed(n, batch):
    even, one_hot = torch.full((n,), 1 / n), torch.eye(n)[0]
    p = torch.randn(batch, n).softmax(1)
    assert balance_loss(p, even).item() == pytest.approx(1, abs=1e-5)
    assert balance_loss(one_hot.expand(batch, n), one_hot).item() == pytest.approx(n)
    assert balance_loss(p, one_hot).item() == pytest.approx(n * p[:, 0].mean().item(), rel=1e-5)


def test_share_is_the_running_part_of_the_assignments():
    layer = MoEConv2d(4, 4, 1, num_experts=3, top_k=1).train()
    with torch.no_grad():
        layer.gate.weight.zero_()
        layer.gate.bias.copy_(torch.tensor([0.0, 5.0, 0.0]))
    with collect_losses(routed_layers(layer)) as totals:
        layer(torch.randn(2, 4, 3, 3))
        p = torch.tensor([0.0, 5.0, 0.0]).softmax(0)
        share = (1 - SHARE_STEP) * torch.full((3,), 1 / 3) + SHARE_STEP * torch.tensor([0.0, 1.0, 0.0])
        torch.testing.assert_close(layer.share, share)
        torch.testing.assert_close(totals()['moe_balance'].item(), 3 * (share @ p).item())
    layer(torch.randn(2, 4, 3, 3))
    torch.testing.assert_close(layer.share, share)  # nothing is counted outside of a step


def test_the_loss_alone_evens_out_the_use_of_experts():
    layer, x = MoEConv2d(8, 4, 1, num_experts=4, top_k=1), torch.randn(64, 8, 4, 4)
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
    assert layer.share.max() < 0.6 and layer.share.min() > 0.05


@pytest.mark.parametrize('use_reentrant', [True, False])
def test_activation_checkpointing_keeps_loss_and_gradients(use_reentrant):
    layer = MoEConv2d(4, 4, 3, num_experts=3, top_k=2).train()
    nn.init.normal_(layer.gate.weight)
    x = torch.randn(2, 4, 8, 8, requires_grad=True)

    def step(run):
        layer.share.fill_(1 / 3)
        layer.zero_grad()
        with collect_losses({'': layer}) as totals:
            y = run(x)
            loss = totals()['moe_balance']
        (y.square().mean() + loss).backward()
        return loss.item(), layer.share.clone(), [p.grad.clone() for p in layer.parameters()]

    plain, saving = step(layer), step(lambda x: checkpoint(layer, x, use_reentrant=use_reentrant))
    assert plain[0] == pytest.approx(saving[0])
    torch.testing.assert_close(saving[1:], plain[1:])


def test_a_layer_that_a_head_uses_at_several_levels_counts_once():
    layer = MoEConv2d(4, 4, 1).train()
    with collect_losses({'head': layer}) as totals:
        for size in (8, 4, 2):
            layer(torch.randn(2, 4, size, size))
        loss = totals()['moe_balance']
    loss.backward()
    assert loss.item() == pytest.approx(1, abs=0.1) and layer.gate.weight.grad is not None


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(num_experts=0), 'num_experts=0 must be a whole number'),
        (dict(num_experts=4, top_k=5), 'top_k=5 must be a whole number between 1 and num_experts=4'),
        (dict(top_k=0), 'top_k=0'),
        (dict(top_k=1.5), 'top_k=1.5'),
        (dict(groups=3), 'divisible by groups'),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        MoEConv2d(4, 4, 3, **options)

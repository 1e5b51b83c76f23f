import pytest
import torch

from mmkerneldna.layers import InputGate


def test_gate_equals_the_formula():
    torch.manual_seed(0)
    gate = InputGate(12, reduction=5).eval()
    gate.norm.running_mean.normal_()
    gate.norm.running_var.uniform_(0.5, 2)
    x = torch.randn(3, 12, 4, 5)
    pooled = x.sum((2, 3)) / 20
    hidden = pooled @ gate.fc1.weight.view(2, 12).T
    hidden = (hidden - gate.norm.running_mean) / (gate.norm.running_var + 1e-5).sqrt()
    hidden = (hidden * gate.norm.weight + gate.norm.bias).clamp(min=0)
    expected = 1 / (1 + torch.exp(-(hidden @ gate.fc2.weight.view(12, 2).T + gate.fc2.bias)))
    torch.testing.assert_close(gate(x), expected.view(3, 12, 1, 1))


@pytest.mark.parametrize('norm_cfg', [dict(type='BN'), dict(type='LN'), dict(type='GN', num_groups=1), None])
def test_batch_of_one_trains(norm_cfg):
    torch.manual_seed(0)
    gate, x = InputGate(64, norm_cfg=norm_cfg), torch.randn(1, 64, 3, 3, requires_grad=True)
    gate.train()(x).sum().backward()
    assert torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0
    assert all(p.grad is not None for p in gate.parameters())


@pytest.mark.parametrize('reduction', [0, 9])
def test_reduction_outside_the_channels(reduction):
    with pytest.raises(ValueError, match=f'reduction={reduction}.*between 1 and its 8 channels'):
        InputGate(8, reduction=reduction)


def test_hidden_width_rounds_down():
    gate = InputGate(192, reduction=24)
    assert gate.fc1.weight.shape == (8, 192, 1, 1) and gate.fc1.bias is None
    assert gate.fc2.weight.shape == (192, 8, 1, 1) and gate.fc2.bias is not None

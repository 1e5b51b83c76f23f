"""Without gradients experts go another way than in training: the same outputs, in a workspace that calls share."""

import threading

import pytest
import torch
from torch import nn

from mmkerneldna.layers.expert_gate import FEW_EXPERTS, most_probable_one
from mmkerneldna.routing import PositionFFN2d, PositionMoE2d, infer_positions
from mmkerneldna.routing.infer_positions import sort_by_expert, workspace
from mmkerneldna.routing.position_moe import group

LAYERS = {
    'one of 4': lambda: PositionMoE2d(8, 6, num_experts=4),
    '3 of 16, no bias': lambda: PositionMoE2d(8, 6, bias=False, num_experts=16, top_k=3),
    'stride': lambda: PositionMoE2d(8, 6, 1, 2, num_experts=12),
    'tree': lambda: PositionMoE2d(8, 6, num_experts=4, gate=dict(type='TreeRouter')),
    'perceptron': lambda: PositionFFN2d(8, 16, 6, num_experts=4),
    'perceptron, 2 of 4': lambda: PositionFFN2d(8, 16, num_experts=4, top_k=2),
}


@pytest.mark.parametrize('shape', [(2, 8, 9, 7), (1, 8, 1, 1), (0, 8, 3, 3)], ids=str)
@pytest.mark.parametrize('make', LAYERS.values(), ids=LAYERS)
def test_the_same_as_with_gradients(make, shape):
    layer, x = make().double().eval(), torch.randn(shape, dtype=torch.double)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    expected = layer(x)
    assert expected.requires_grad
    with torch.inference_mode():
        first = layer(x.contiguous(memory_format=torch.channels_last))
        assert first.is_contiguous(memory_format=torch.channels_last)
        layer(torch.randn(1, 8, 5, 5, dtype=torch.double))  # the workspace is another call's, the result is not
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(first.contiguous(), expected)


def test_it_is_the_way_of_calls_without_gradients_alone(monkeypatch):
    calls = []
    real = infer_positions.infer_positions
    for module in ('position_moe', 'position_ffn'):
        monkeypatch.setattr(f'mmkerneldna.routing.{module}.infer_positions', lambda *args: calls.append(1) or real(*args))
    x = torch.randn(1, 8, 4, 4)
    for number, make in enumerate(LAYERS.values(), start=1):
        layer = make().eval()
        layer(x)
        with torch.no_grad():
            layer(x)
            with torch.autocast('cpu', dtype=torch.bfloat16):
                layer(x)
        assert len(calls) == number
    with torch.no_grad():
        PositionMoE2d(8, 6, num_experts=2, top_k=2).eval()(x)  # all experts: nothing to sort
    assert len(calls) == len(LAYERS)


@pytest.mark.parametrize('experts', [1, 5, 300])
def test_sorts_as_torch_does(experts):
    chosen = torch.randint(0, experts, (1000,))
    for ours, theirs in zip(sort_by_expert(chosen, experts), group(chosen, experts)):
        assert ours == theirs if isinstance(ours, list) else torch.equal(ours, theirs)


def test_a_workspace_is_kept_per_thread():
    def address(rows):
        return workspace(torch.empty(0), (rows, 3), (2, 5))[0].data_ptr()

    with torch.inference_mode():
        address(4)
    parts = workspace(torch.empty(0), (4, 3), (2, 5))
    assert [part.shape for part in parts] == [(4, 3), (2, 5)] and not any(part.is_inference() for part in parts)
    first = address(4)
    assert address(3) == first
    others = []
    thread = threading.Thread(target=lambda: others.append(address(4)))
    thread.start()
    thread.join()
    assert others[0] != first


@pytest.mark.parametrize('experts', [1, 4, FEW_EXPERTS, FEW_EXPERTS + 1])
def test_the_most_probable_expert_without_gradients(experts):
    logits = torch.randn(50, experts) * 5
    expected = logits.softmax(1).max(1, keepdim=True)
    values, numbers = most_probable_one(logits)
    torch.testing.assert_close(values, expected.values)
    assert torch.equal(numbers, expected.indices)

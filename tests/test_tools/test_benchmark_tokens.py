"""tools/benchmark_tokens.py: its rows are what they say; no time is asserted."""

import benchmark_tokens
import pytest
import torch
from tiny_runs import run_tool


@pytest.mark.parametrize('keep', [0.1, 0.25, 0.5])
def test_as_many_tiles_as_are_asked_for(keep):
    mask = benchmark_tokens.some_tiles(8, keep)
    assert mask.shape == (1, 8, 8) and mask.sum() == round(64 * keep)


def test_full_attention_is_the_routed_layer_with_all_regions():
    layer = benchmark_tokens.RoutingAttention2d(8, region=4, top_k=4).eval()
    torch.nn.init.normal_(layer.project.weight)
    x = torch.randn(1, 8, 8, 8)
    torch.testing.assert_close(benchmark_tokens.FullAttention(layer)(x), layer(x))


def test_refuses(capsys):
    assert run_tool('benchmark_tokens.py', ['--rows', 'everything']) == 2
    assert 'invalid choice' in capsys.readouterr().err

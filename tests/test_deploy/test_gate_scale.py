"""The fused gate kernels against the plain formula: in Triton's interpreter, and on a GPU where there is one."""

import os
import subprocess
import sys

import pytest
import torch

from mmkerneldna.deploy.gate_scale import gate_scale, gate_scale_reference, launch
from mmkerneldna.layers import InputGate

CASES = [
    (1, 16, 4, 3, 5, False),
    (2, 70, 17, 7, 9, True),
    (3, 128, 32, 14, 14, True),
    (1, 32, 5, 40, 33, True),
    (1, 32, 1, 30, 30, False),
]


def make_case(batch, channels, hidden, height, width, channels_last, device='cpu', dtype=torch.float32):
    torch.manual_seed(0)
    x = torch.randn(batch, channels, height, width)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    weights = (
        torch.randn(hidden, channels) * 0.3,
        torch.randn(hidden),
        torch.randn(channels, hidden) * 0.3,
        torch.randn(channels),
    )
    return [t.to(device, dtype) for t in (x, *weights)]


def assert_kernels_agree(device='cpu', dtype=torch.float32, tolerance=1e-6, cases=CASES):
    for case in cases:
        arguments = make_case(*case, device, dtype)
        y = launch(*arguments)
        expected = gate_scale_reference(*(a.double() for a in arguments))
        assert (y - expected).abs().max() <= tolerance * expected.abs().max(), case
        assert y.stride() == arguments[0].stride() and y.dtype == dtype
    wide = make_case(2, 32, 4, 6, 8, False, device, dtype)
    wide[0] = wide[0][..., ::2]  # pixels at no single stride
    assert (launch(*wide) - gate_scale_reference(*wide)).abs().max() <= tolerance * 10


def test_reference_is_the_input_gate():
    gate = InputGate(8, 4, norm_cfg=None).eval()
    x = torch.randn(3, 8, 5, 6)
    bias = torch.zeros(2)
    y = gate_scale(x, gate.fc1.weight.flatten(1), bias, gate.fc2.weight.flatten(1), gate.fc2.bias, fused=True)
    torch.testing.assert_close(y, x * gate(x))  # fused=True on a CPU tensor is the plain path


def test_kernels_in_the_interpreter():
    """In a process of its own: Triton reads the variable when the kernels are defined."""
    pytest.importorskip('triton', reason='needs triton')
    code = (
        'import test_gate_scale as t, torch; t.assert_kernels_agree(); '
        't.assert_kernels_agree(dtype=torch.bfloat16, tolerance=1e-2, cases=t.CASES[:2])'
    )
    here = os.path.dirname(__file__)
    path = os.pathsep.join([here, os.path.dirname(os.path.dirname(here)), os.environ.get('PYTHONPATH', '')])
    run = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        env={**os.environ, 'TRITON_INTERPRET': '1', 'PYTHONPATH': path},
    )
    assert run.returncode == 0, run.stderr[-2000:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_kernels_on_the_gpu(dtype, tolerance):
    assert_kernels_agree('cuda', dtype, tolerance)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_operator_composes_with_compile():
    arguments = make_case(*CASES[2], 'cuda')
    compiled = torch.compile(lambda *a: gate_scale(*a, fused=True), fullgraph=True)
    torch.testing.assert_close(compiled(*arguments), gate_scale_reference(*arguments), rtol=1e-4, atol=1e-4)

"""Every loss against loops over its definition."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmkerneldna.distill.losses import cwd_loss, mse_loss, pkd_loss

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(2, 4), st.integers(2, 4))


def pair(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) * 3 + 1 for _ in range(2)]


@settings(deadline=None, max_examples=25)
@given(shape=SHAPES, seed=st.integers(0, 1000))
def test_pkd_is_one_minus_the_correlation_of_each_channel(shape, seed):
    student, teacher = pair(shape, seed)
    r = [np.corrcoef(student[:, c].flatten(), teacher[:, c].flatten())[0, 1] for c in range(shape[1])]
    assert pkd_loss(student, teacher).item() == pytest.approx(1 - np.mean(r), abs=1e-4)


def test_pkd_is_blind_to_scale_and_offset_of_a_channel():
    student, teacher = pair((2, 3, 5, 4))
    moved = student * torch.tensor([2.0, 0.5, 10.0]).view(1, 3, 1, 1) - 7
    assert pkd_loss(moved, teacher).item() == pytest.approx(pkd_loss(student, teacher).item(), abs=1e-5)
    assert pkd_loss(moved, student).item() == pytest.approx(0, abs=1e-5)


def test_pkd_of_a_dead_channel_is_finite():
    student, teacher = torch.zeros(2, 1, 3, 3, requires_grad=True), pair((2, 1, 3, 3))[1]
    loss = pkd_loss(student, teacher)
    loss.backward()
    assert loss.item() == pytest.approx(0.5, abs=1e-4)  # no variance: only the teacher's is left
    assert student.grad.isfinite().all()


@settings(deadline=None, max_examples=25)
@given(shape=SHAPES, seed=st.integers(0, 1000), tau=st.floats(0.5, 8))
def test_cwd_against_loops(shape, seed, tau):
    student, teacher = pair(shape, seed)
    images, channels, height, width = shape
    total = 0.0
    for n in range(images):
        for c in range(channels):
            places = [(y, x) for y in range(height) for x in range(width)]
            p, q = ([math.exp(float(m[n, c, y, x]) / tau) for y, x in places] for m in (teacher, student))
            total += sum(a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q))
    expected = tau**2 * total / (images * channels)
    assert cwd_loss(student, teacher, tau).item() == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_mse_is_relative_to_the_teacher():
    student, teacher = pair((2, 3, 4, 5))
    expected = float(((student - teacher) ** 2).sum() / (teacher**2).sum())
    assert mse_loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)
    assert mse_loss(torch.zeros_like(teacher), teacher).item() == pytest.approx(1)


@pytest.mark.parametrize('loss', [pkd_loss, cwd_loss, mse_loss])
def test_half_precision_is_computed_in_fp32(loss):
    student, teacher = pair((2, 3, 8, 8))
    exact = loss(student.half().float(), teacher.half().float())
    value = loss(student.half(), teacher.half())
    assert value.dtype == torch.float32 and value.item() == pytest.approx(exact.item(), rel=1e-6)
    assert loss(teacher, teacher).item() == pytest.approx(0, abs=1e-5)

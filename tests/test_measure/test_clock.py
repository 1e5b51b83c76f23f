"""What one sample holds, and which samples count as disturbed. No test relies on the machine being idle."""

import time

import pytest
import torch

from mmkerneldna.measure import clock
from mmkerneldna.measure.clock import Sample, disturbance, sample


def spin(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_a_working_call_uses_as_much_processor_as_wall_time_or_queues_for_it():
    taken = sample(lambda: spin(0.02))
    assert 20 <= taken.cpu < 30 and taken.wall >= 20
    assert taken.queued >= 0


def test_a_sleeping_call_uses_none():
    taken = sample(lambda: time.sleep(0.05))
    assert taken.wall >= 50 and taken.cpu < 25


def test_systems_without_a_queue_time(monkeypatch):
    monkeypatch.setattr(clock.os, 'listdir', lambda path: (_ for _ in ()).throw(FileNotFoundError(path)))
    assert sample(lambda: None).queued == 0


@pytest.mark.parametrize(
    'samples, device, reason',
    [
        ([Sample(100, 199, 1)] * 3, 'cpu', ''),
        ([Sample(100, 100, 0)] * 3, 'cpu', ''),
        # one of two threads had to wait, the other spun: processor time alone shows nothing
        ([Sample(100, 150, 50)] * 3, 'cpu', 'threads waited 50.0 ms for a processor in a call of 100.0 ms'),
        ([Sample(100, 150, 50)] * 3, 'cuda', 'threads waited 50.0 ms for a processor in a call of 100.0 ms'),
        ([Sample(100, 40, 0)] * 3, 'cpu', 'the process had a processor for 40% of the time'),
        ([Sample(100, 40, 0)] * 3, 'cuda', ''),  # it waits for the device
        ([Sample(0.1, 0.1, 0.05)] * 3, 'cpu', ''),  # woken up, not held up
        ([Sample(w, w, 0) for w in (10, 31, 32)], 'cpu', 'the median of 31.0 ms is 3.1 times the fastest repeat'),
        ([Sample(w, w, 0) for w in (10, 11, 500)], 'cpu', ''),  # one outlier
        ([Sample(0, 0, 0)], 'cpu', ''),  # a clock too coarse to tell
    ],
)
def test_what_is_disturbed(samples, device, reason):
    assert disturbance(samples, device) == reason


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_cuda_work_is_in_the_sample():
    x = torch.randn(4096, 4096, device='cuda')
    assert sample(lambda: [x @ x for _ in range(10)], 'cuda').wall > 1

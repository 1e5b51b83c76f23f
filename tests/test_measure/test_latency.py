"""The order of calls, the statistics and the failures; never the times."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmkerneldna.errors import UsageError
from mmkerneldna.measure import latency
from mmkerneldna.measure.clock import Sample
from mmkerneldna.measure.latency import Failure, Timing, attempt, interleaved_samples, summarize, time_interleaved


def test_calls_take_turns_and_the_first_place_rotates():
    order = []
    time_interleaved({name: lambda name=name: order.append(name) for name in 'abc'}, repeats=2, warmup=1)
    assert ''.join(order) == 'abcbcacab'


def test_warm_up_is_not_timed():
    timings = time_interleaved({'a': lambda: None}, repeats=3, warmup=4)
    assert timings['a'].repeats == 3


def test_a_failure_is_named_and_the_others_go_on():
    calls = dict(good=0)

    def good():
        calls['good'] += 1

    def bad():
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20 GiB')

    timings = time_interleaved({'bad': bad, 'good': good}, repeats=3, warmup=1)
    assert str(timings['bad']) == 'OOM' and timings['bad'].message.startswith('CUDA out of memory')
    assert timings['good'].repeats == 3 and calls['good'] == 4


def test_a_failure_in_a_timed_round_is_a_failure():
    countdown = iter(range(2))

    def fragile():
        if next(countdown, None) is None:
            raise ValueError('worn out\nsecond line')

    assert time_interleaved({'a': fragile}, repeats=3, warmup=1)['a'] == Failure('ValueError', 'worn out')


@pytest.mark.parametrize(
    'error, kind',
    [
        (MemoryError(), 'OOM'),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), 'OOM'),
        (RuntimeError('mat1 and mat2 shapes cannot be multiplied'), 'RuntimeError'),
        (KeyError('x'), 'KeyError'),
    ],
)
def test_kind_of_a_failure(error, kind):
    def call():
        raise error

    assert attempt(call).kind == kind


def test_a_mistake_in_the_command_is_no_cell():
    def call():
        raise UsageError('5000 proposals per image')

    with pytest.raises(UsageError, match='5000 proposals'):
        time_interleaved({'a': lambda: None, 'b': call}, repeats=1, warmup=0)


def test_a_real_allocation_that_does_not_fit_is_oom():
    assert str(attempt(lambda: torch.empty(2**58))) == 'OOM'


def test_interrupts_pass():
    def call():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attempt(call)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0.001, 1e4), min_size=1, max_size=40))
def test_statistics(times):
    timing = summarize([Sample(wall=time, cpu=time) for time in times])
    assert timing.median == pytest.approx(np.median(times))
    assert timing.p90 == np.percentile(times, 90, method='inverted_cdf')
    assert timing.repeats == len(times)


class Machine:
    """A clock of its own: each sample takes the next of the given milliseconds, and is disturbed from 1000 on."""

    def __init__(self, monkeypatch, milliseconds):
        self.now, self.left = 0.0, list(milliseconds)
        monkeypatch.setattr(latency, 'monotonic', lambda: self.now)
        monkeypatch.setattr(latency, 'sample', self.sample)
        monkeypatch.setattr(latency, 'disturbance', lambda samples, device: 'busy' if samples[0].wall >= 1000 else '')
        monkeypatch.setattr(latency, 'ATTEMPTS', 3)

    def sample(self, call, device):
        call()
        taken = self.left.pop(0)
        self.now += taken / 1e3
        return Sample(taken, taken)


@pytest.mark.parametrize(
    'each, budget, warmup, repeats',
    [
        (100, 20, 3, 10),  # all fit
        (2000, 20, 3, 7),  # three to warm up, seven more until 20 s
        (4000, 20, 2, 3),  # warming up ends at half of the budget
        (30000, 20, 1, 1),  # one call to warm up and one that counts
    ],
)
def test_a_budget_leaves_fewer_repeats_but_one(monkeypatch, each, budget, warmup, repeats):
    machine, calls = Machine(monkeypatch, [each] * 99), []
    monkeypatch.setattr(latency, 'disturbance', lambda samples, device: '')
    timing = time_interleaved({'a': lambda: calls.append(0)}, repeats=10, warmup=3, budget_s=budget)['a']
    assert (timing.repeats, len(calls)) == (repeats, warmup + repeats)
    assert machine.now <= budget or repeats == 1


def test_a_disturbed_measurement_is_made_again(monkeypatch):
    machine = Machine(monkeypatch, [50, 1500, 1200, 60, 70, 99])
    timing = time_interleaved({'a': lambda: None}, repeats=2, warmup=1)['a']
    assert timing == Timing(65, 70, 2) and machine.left == [99]


def test_the_least_disturbed_attempt_is_taken_and_marked(monkeypatch):
    Machine(monkeypatch, [1300, 1200, 1250])
    assert time_interleaved({'a': lambda: None}, repeats=1, warmup=0)['a'] == Timing(1200, 1200, 1, 'busy')


def test_measured_again_within_the_budget_only(monkeypatch):
    machine = Machine(monkeypatch, [1300, 1200, 1250])
    timing = time_interleaved({'a': lambda: None}, repeats=1, warmup=0, budget_s=3)['a']
    assert timing == Timing(1200, 1200, 1, 'busy') and machine.left == [1250]


def test_all_calls_are_measured_again_together(monkeypatch):
    Machine(monkeypatch, [1500, 10, 20, 11])  # in the second attempt 'a' takes 20
    timings = time_interleaved({'a': lambda: None, 'b': lambda: None}, repeats=1, warmup=0)
    assert (timings['a'].median, timings['b'].median) == (20, 11)


def test_samples_of_one_round_belong_together(monkeypatch):
    Machine(monkeypatch, [1, 2, 3, 4, 5, 6])
    taken = interleaved_samples({'a': lambda: None, 'b': lambda: None}, repeats=3, warmup=0)
    assert [s.wall for s in taken['a']] == [1, 4, 5] and [s.wall for s in taken['b']] == [2, 3, 6]


def test_throughput():
    assert Timing(median=20.0, p90=30.0, repeats=5).throughput(images=8) == 400


@pytest.mark.parametrize('bad', [dict(repeats=0), dict(warmup=-1)])
def test_bad_counts(bad):
    with pytest.raises(ValueError, match='at least'):
        time_interleaved({}, **bad)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_cuda_work_is_waited_for():
    x = torch.randn(2048, 2048, device='cuda')
    done = torch.cuda.Event()

    def call():
        (x @ x @ x)
        done.record()

    time_interleaved({'a': call}, 'cuda', repeats=1, warmup=0)
    assert done.query()

"""Displays of a run: what a pipe, a terminal and a parent process get."""

import io

import numpy as np
import pytest
from rich.console import Console

from mmkerneldna.runs import progress
from mmkerneldna.runs.progress import EventDisplay, LiveDisplay, PlainDisplay, Step, make_display, read_event
from mmkerneldna.runs.scores import describe_scores


@pytest.fixture
def clock(monkeypatch):
    """Seconds that only tests move."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, 'time', clock)
    return clock


def pipe():
    return Console(file=io.StringIO(), width=120)


def test_facts():
    assert Step('train', 1, 9, 1.2345, 'mIoU 61.5', 75.4).facts() == 'loss 1.234, mIoU 61.5, 0:01:15 left'
    assert Step('val', 1, 9).facts() == ''


def test_a_pipe_gets_few_lines(clock):
    console = pipe()
    display = PlainDisplay(console)
    for done in range(1, 1001):
        clock.now += 1
        display.step(Step('train', done, 1000, 0.5))
    lines = console.file.getvalue().splitlines()
    assert lines == [f'  train {done} of 1000, loss 0.500' for done in (240, 480, 720, 960)]


def test_a_short_run_gets_none(clock):
    console = pipe()
    display = PlainDisplay(console)
    for done in range(1, 101):
        clock.now += 1
        display.step(Step('train', done, 100))
    display.say('score [bold] 3')
    assert console.file.getvalue() == 'score [bold] 3\n'


def test_a_long_run_gets_ten(clock):
    console = pipe()
    display = PlainDisplay(console)
    for done in range(1, 5001):
        clock.now += 10
        display.step(Step('train', done, 5000))
    assert len(console.file.getvalue().splitlines()) == 9


def test_events_survive_the_way_to_the_parent(clock):
    console = pipe()
    display, step = EventDisplay(console), Step('train', 3, 7, 0.25, 'box AP 1.0', 12.5)
    clock.now += 1
    display.step(step)
    display.step(Step('train', 4, 7))  # too soon after the first
    display.step(Step('train', 7, 7))  # the last one always
    display.say('a line')
    lines = console.file.getvalue().splitlines()
    assert [read_event(line) for line in lines] == [step, Step('train', 7, 7), None]


def test_a_terminal_gets_one_line_that_is_written_over(monkeypatch):
    monkeypatch.setenv('TERM', 'xterm')
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    display = LiveDisplay(console)
    for done in range(1, 51):
        display.step(Step('train', done, 50, 0.5, 'mIoU 3.0', 61))
    display.bar.refresh()
    display.say('box [AP] 3')
    display.close()
    text = console.file.getvalue()
    assert '50/50' in text and 'loss 0.500, mIoU 3.0, 0:01:01 left' in text and 'box [AP] 3' in text
    assert text.count('\n') <= 3


def test_the_display_fits_the_output(monkeypatch):
    assert type(make_display(pipe())) is PlainDisplay
    live = make_display(Console(file=io.StringIO(), force_terminal=True))
    live.close()
    assert type(live) is LiveDisplay
    monkeypatch.setenv(progress.EVENTS_WANTED, '1')
    assert type(make_display(pipe())) is EventDisplay


def test_scores_in_words():
    metrics = {'mIoU': np.float32(61.5), 'aAcc': 80, 'mAcc': float('nan'), 'coco/bbox_mAP': 0.264, 'cost/gmacs': 1.3}
    assert describe_scores(metrics) == 'box AP 26.4, mIoU 61.5, aAcc 80.0'

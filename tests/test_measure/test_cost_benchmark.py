"""Rows of a benchmark: numbers in their cells, failures named, the rest goes on."""

import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmkerneldna.measure import benchmark
from mmkerneldna.measure.benchmark import Benchmark, Subject, build_from_config
from mmkerneldna.measure.input_size import parse_size, size_from_config
from mmkerneldna.measure.latency import Timing
from mmkerneldna.measure.workload import Workload


class Hungry(nn.Conv2d):
    """Runs out of memory above a batch, or in training."""

    def forward(self, x):
        if len(x) > 1 or self.training:
            raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 9 GiB')
        return super().forward(x)


def no_such_net():
    raise KeyError('NoSuchNet is not registered')


WORKLOADS = [Workload(1, (8, 10)), Workload(4, (8, 10))]


def test_cells(monkeypatch):
    medians = dict(small=10.0, large=25.0)
    monkeypatch.setattr(
        benchmark,
        'time_interleaved',
        lambda calls, device, repeats, warmup: {name: Timing(medians[name], 30.0, repeats) for name in calls},
    )
    subjects = [Subject('small', lambda: nn.Conv2d(3, 2, 1)), Subject('large', lambda: nn.Conv2d(3, 4, 3, padding=1))]
    rows = Benchmark(subjects, WORKLOADS, repeats=2).run(train_step=True)
    assert [(row['name'], row['batch']) for row in rows] == [('small', 1), ('large', 1), ('small', 4), ('large', 4)]
    large = rows[3]
    assert (large['height'], large['width'], large['precision'], large['error']) == (8, 10, 'fp32', None)
    assert (large['latency_ms'], large['latency_ratio'], large['throughput_img_s']) == (25.0, 2.5, 160.0)
    assert (large['train_step_ms'], large['train_step_ratio']) == (25.0, 2.5)
    assert large['gmacs'] == 3 * 4 * 9 * 80 / 1e9, 'of one image, whatever the batch'
    assert large['unique_params_m'] == (3 * 4 * 9 + 4) / 1e6
    parameters, output = 4 * (3 * 4 * 9 + 4), 4 * 4 * 4 * 80
    assert large['peak_memory_mb'] * 1e6 >= parameters + output
    assert large['train_peak_memory_mb'] * 1e6 >= 2 * parameters + output


def test_failures_are_named_and_the_rest_goes_on():
    subjects = [
        Subject('good', lambda: nn.Conv2d(3, 2, 1)),
        Subject('missing', no_such_net),
        Subject('hungry', lambda: Hungry(3, 2, 1)),
    ]
    rows = {
        (row['name'], row['batch']): row for row in Benchmark(subjects, WORKLOADS, repeats=2, warmup=1).run(train_step=True)
    }
    assert len(rows) == 6
    for batch in (1, 4):
        assert rows['good', batch]['error'] is None and rows['good', batch]['latency_ratio'] == 1
        assert rows['good', batch]['train_step_ms'] > 0
        missing = rows['missing', batch]
        assert missing['error'] == missing['train_error'] == "KeyError: 'NoSuchNet is not registered'"
        assert missing['latency_ms'] is missing['gmacs'] is missing['latency_ratio'] is None
    assert rows['hungry', 1]['latency_ms'] > 0 and rows['hungry', 1]['error'] is None
    assert rows['hungry', 4]['latency_ms'] is None and rows['hungry', 4]['error'] == 'OOM'
    assert rows['hungry', 4]['gmacs'] == 3 * 2 * 80 / 1e9, 'what could be measured stays'
    assert rows['hungry', 1]['train_error'] == 'OOM'


def test_ratios_need_the_first():
    subjects = [Subject('missing', no_such_net), Subject('good', lambda: nn.Conv2d(3, 2, 1))]
    good = Benchmark(subjects, WORKLOADS[:1], repeats=1, warmup=0).run()[1]
    assert good['latency_ms'] > 0 and good['latency_ratio'] is None


def test_what_is_prepared_is_timed_and_what_was_built_is_counted():
    ran = []

    def prepare(model, workload):
        stand_in = nn.Conv2d(3, 1, 1)
        stand_in.register_forward_hook(lambda *_: ran.append(workload.batch))
        return stand_in

    (row,) = Benchmark([Subject('net', lambda: nn.Conv2d(3, 2, 1))], WORKLOADS[1:], prepare, 3, 0).run()
    assert ran == [4] * 4  # three rounds and the memory
    assert row['unique_params_m'] == (3 * 2 + 2) / 1e6


def test_rows_are_handed_out_after_each_workload():
    seen = []
    Benchmark([Subject('net', lambda: nn.Conv2d(3, 2, 1))], WORKLOADS, repeats=1, warmup=0).run(
        progress=lambda rows: seen.append(len(rows))
    )
    assert seen == [1, 2]


def test_equal_names_are_refused():
    with pytest.raises(ValueError, match='must differ'):
        Benchmark([Subject('net', no_such_net)] * 2, WORKLOADS)


def test_scopes():
    model = dict(type='mmdet.RetinaNet', backbone=dict(type='ResNet', depth=18))
    cfg = Config(dict(default_scope='mmdet', model=model))
    backbone = build_from_config(cfg, 'backbone')
    assert type(backbone).__module__ == 'mmdet.models.backbones.resnet'
    again = build_from_config(cfg, 'backbone')
    assert torch.equal(backbone.conv1.weight, again.conv1.weight)


@pytest.mark.parametrize('text, size', [('224', (224, 224)), ('800x1344', (800, 1344)), ('64X32', (64, 32))])
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize('text', ['big', '1x2x3', '0', '0x4', 'x5', '5x', '-3', '800 1344', '', '1.5'])
def test_bad_sizes(text):
    with pytest.raises(ValueError, match='neither N nor HxW'):
        parse_size(text)


def test_size_a_config_states():
    resize = dict(test_pipeline=[dict(type='LoadImageFromFile'), dict(type='Resize', scale=(1333, 800))])
    assert size_from_config(Config(resize)) == (800, 1333)
    assert size_from_config(Config(dict(crop_size=(512, 256), **resize))) == (512, 256)
    assert size_from_config(Config(dict(test_pipeline=[dict(type='Resize', scale_factor=0.5)]))) is None

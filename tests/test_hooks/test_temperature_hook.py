import json
from pathlib import Path

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader, Dataset

from mmkerneldna.hooks import TemperatureHook
from mmkerneldna.layers import DyConv2d, KWConv2d, ODConv2d


class Images(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return dict(inputs=torch.randn(4, 6, 6, generator=torch.Generator().manual_seed(index)))


class Net(BaseModel):
    """Logs the temperature that each training step sees."""

    def __init__(self, *convs):
        super().__init__()
        self.convs, self.seen = nn.Sequential(*convs), []

    def forward(self, inputs, mode='loss'):
        self.seen.append([conv.temperature for conv in self.convs if hasattr(conv, 'temperature')])
        return dict(loss=self.convs(inputs).square().mean())


class PositionalEncoding(nn.Module):
    """Has a temperature and is no convolution, as mmdet's."""

    temperature = 10000.0

    def forward(self, x):
        return x


def train(work_dir, net, hook, epochs=3, iters=None, **kwargs):
    loop = dict(by_epoch=True, max_epochs=epochs) if iters is None else dict(by_epoch=False, max_iters=iters)
    runner = Runner(
        net,
        str(work_dir),
        train_dataloader=DataLoader(Images(), batch_size=2),
        train_cfg=loop,
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        custom_hooks=[hook],
        log_level='ERROR',
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1), checkpoint=dict(type='CheckpointHook', interval=1)),
        log_processor=dict(window_size=1, by_epoch=iters is None),
        experiment_name=f'{work_dir.name}-{id(net)}',
        **kwargs,
    )
    runner.train()
    return net


def convs(*kinds):
    return [kind(4, 4, 3, padding=1) for kind in kinds]


def test_linear_over_epochs_for_every_layer_and_only_for_convolutions(tmp_path):
    encoding = PositionalEncoding()
    net = train(tmp_path, Net(*convs(DyConv2d, ODConv2d), encoding), dict(type='TemperatureHook', start=30, end=1, length=2))
    expected = [30, 22.75, 15.5, 8.25, 1, 1]
    assert [seen[:2] for seen in net.seen] == [pytest.approx([t, t]) for t in expected]
    assert encoding.temperature == 10000.0


def test_by_default_each_layer_takes_its_own_schedule_over_a_third_of_the_run(tmp_path):
    net = train(tmp_path, Net(*convs(ODConv2d, KWConv2d)), dict(type='TemperatureHook'), epochs=6)
    assert [seen[0] for seen in net.seen] == pytest.approx([30, 22.75, 15.5, 8.25] + [1] * 8)
    assert [seen[1] for seen in net.seen] == pytest.approx([1, 0.75, 0.5, 0.25] + [0] * 8)
    net = train(tmp_path, Net(*convs(KWConv2d)), dict(type='TemperatureHook'), iters=6)
    assert [seen[0] for seen in net.seen] == pytest.approx([1, 0.5, 0, 0, 0, 0])


def test_a_long_run_of_iterations_warms_up_for_16000():
    class Runner:
        max_iters, train_loop = 160000, None

    assert TemperatureHook()._warmup(Runner) == 16000


def test_is_logged(tmp_path):
    train(tmp_path, Net(*convs(KWConv2d)), dict(type='TemperatureHook', start=1, end=0, length=2))
    lines = [json.loads(line) for path in Path(tmp_path).rglob('vis_data/scalars.json') for line in path.open()]
    assert [line['temperature'] for line in lines] == pytest.approx([1, 0.75, 0.5, 0.25, 0, 0])


def test_cosine_over_iterations(tmp_path):
    hook = dict(type='TemperatureHook', start=1, end=0, length=4, by_epoch=False, schedule='cosine')
    net = train(tmp_path, Net(*convs(KWConv2d)), hook, iters=5)
    assert [seen[0] for seen in net.seen] == pytest.approx([1, 0.853553, 0.5, 0.146447, 0], abs=1e-6)


def test_resume_goes_on_where_it_was(tmp_path):
    hook = dict(type='TemperatureHook', start=30, end=1, length=3)
    whole = train(tmp_path / 'a', Net(*convs(ODConv2d)), hook, epochs=3)
    train(tmp_path / 'b', Net(*convs(ODConv2d)), hook, epochs=1)
    resumed = train(tmp_path / 'b', Net(*convs(ODConv2d)), hook, epochs=3, resume=True)
    assert resumed.seen == whole.seen[2:]


@pytest.mark.parametrize(
    'layers, hook, loop, message',
    [
        ([], dict(start=30, end=1, length=1), {}, 'found no layer with a temperature'),
        ([ODConv2d], dict(start=30, end=1, length=1), dict(iters=2), 'counts epochs, but the run counts iterations'),
        ([KWConv2d], dict(start=30, end=0, length=1), {}, 'temperature=30.0 of a KWConv2d must lie between 0'),
    ],
)
def test_refuses_when_training_starts(tmp_path, layers, hook, loop, message):
    net = Net(*convs(*layers), nn.Conv2d(4, 4, 1))
    with pytest.raises(ValueError, match=message):
        train(tmp_path, net, dict(type='TemperatureHook', **hook), **loop)


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(schedule='step'), "schedule='step' must be one of 'linear', 'cosine'"),
        (dict(length=0), 'length=0 of the temperature warm-up'),
        (dict(end=None), 'needs both ends'),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        TemperatureHook(**dict(dict(start=1, end=0, length=1), **options))

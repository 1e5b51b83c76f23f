"""Refused schedules against mmengine itself: what it trains with must pass, what it fails on must not."""

import itertools
import re

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from mmkerneldna.errors import UsageError
from mmkerneldna.launch.schedules import check_schedules

EPOCH_LENGTH = 4
names = itertools.count()


class Net(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, *samples, mode='loss'):
        return dict(loss=self.layer(torch.stack([sample.reshape(1) for sample in samples])).sum())


@pytest.fixture
def runner_of(tmp_path, monkeypatch):
    """A run of a net with two parameters, four iterations an epoch."""
    monkeypatch.setattr(Runner, '_log_env', lambda *args: None)  # asks the compilers for their versions
    monkeypatch.setattr('mmengine.runner.loops.time.sleep', lambda seconds: None)  # two seconds between epochs

    def build(cfg):
        return Runner(
            Net(),
            str(tmp_path),
            train_cfg=cfg.train_cfg,
            param_scheduler=cfg.param_scheduler,
            train_dataloader=dict(
                dataset=torch.ones(EPOCH_LENGTH),
                batch_size=1,
                num_workers=0,
                sampler=dict(type='DefaultSampler', shuffle=False),
            ),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            default_scope='mmdet',
            default_hooks=dict(checkpoint=None, logger=None),
            log_level='ERROR',
            experiment_name=f'schedules_{next(names)}',
        )

    return build


def scheduled(schedulers, length):
    kind = 'IterBasedTrainLoop' if 'max_iters' in length else 'EpochBasedTrainLoop'
    return Config(dict(default_scope='mmdet', train_cfg=dict(type=kind, **length), param_scheduler=schedulers))


def mmengine_trains(runner):
    try:
        runner.train()
    except (AssertionError, TypeError, ValueError):
        return False
    return True


def accepted(cfg, runner=None):
    try:
        check_schedules(cfg, runner)
    except UsageError:
        return False
    return True


ITERS, EPOCHS = dict(max_iters=6), dict(max_epochs=2)
BY_ITER, CONVERTED = dict(by_epoch=False), dict(by_epoch=True, convert_to_iter_based=True)
#: settings of one scheduler, length of the run, whether mmengine trains with it
CASES = [
    # longer than the run, or after its end: never reached, never wrong
    (dict(type='LinearLR', begin=0, end=40, **BY_ITER), ITERS, True),
    (dict(type='PolyLR', begin=50, end=1000, **BY_ITER), ITERS, True),
    (dict(type='LinearLR', begin=0, end=40), ITERS, True),
    (dict(type='LinearLR', begin=0, end=500, **BY_ITER), EPOCHS, True),
    (dict(type='CosineAnnealingLR', T_max=2, begin=3, end=12), EPOCHS, True),
    (dict(type='MultiStepLR', milestones=[30, 40], **BY_ITER), ITERS, True),
    (dict(type='CosineAnnealingLR', T_max=2, **BY_ITER), ITERS, True),
    # nothing between begin and end
    (dict(type='LinearLR', begin=4, end=4, **BY_ITER), ITERS, False),
    (dict(type='CosineAnnealingLR', begin=4, end=2, **BY_ITER), ITERS, False),
    (dict(type='LinearLR', begin=0, end=0, **BY_ITER), EPOCHS, False),
    (dict(type='LinearLR', begin=0, end=1, **BY_ITER), ITERS, True),
    (dict(type='LinearLR', begin=-5, end=3, **BY_ITER), ITERS, True),
    (dict(type='PolyLR', begin=1, end=1.5, **BY_ITER), ITERS, True),
    (dict(type='ReduceOnPlateauLR', monitor='loss', begin=9, end=9), EPOCHS, False),
    (dict(type='QuadraticWarmupLR', begin=5, end=5, **BY_ITER), ITERS, False),
    # no end: that of the run, in the scheduler's unit
    (dict(type='PolyLR', begin=5, **BY_ITER), ITERS, True),
    (dict(type='PolyLR', begin=6, **BY_ITER), ITERS, False),
    (dict(type='MultiStepLR', milestones=[2], begin=1), ITERS, False),
    (dict(type='MultiStepLR', milestones=[2], begin=1), EPOCHS, True),
    (dict(type='MultiStepLR', milestones=[2], begin=2), EPOCHS, False),
    (dict(type='LinearLR', begin=7, **BY_ITER), EPOCHS, True),
    (dict(type='LinearLR', begin=8, **BY_ITER), EPOCHS, False),
    # parts of an epoch, converted to iterations
    (dict(type='LinearLR', begin=0, end=0.2, **CONVERTED), EPOCHS, False),
    (dict(type='LinearLR', begin=0, end=0.25, **CONVERTED), EPOCHS, True),
    (dict(type='LinearLR', begin=0.3, end=0.45, **CONVERTED), EPOCHS, False),
    (dict(type='LinearLR', begin=0, end=0.2), EPOCHS, True),
    (dict(type='LinearLR', begin=1, end=1, **CONVERTED), EPOCHS, False),
    (dict(type='LinearLR', begin=1, **CONVERTED), ITERS, False),
    (dict(type='QuadraticWarmupLR', begin=0, end=0.2, **CONVERTED), EPOCHS, True),
    (dict(type='LinearLR', begin=0, end=4, by_epoch=False, convert_to_iter_based=True), ITERS, False),
    # a one-cycle schedule that is over before the run
    (dict(type='OneCycleLR', eta_max=0.1, total_steps=4, **BY_ITER), ITERS, False),
    (dict(type='OneCycleLR', eta_max=0.1, total_steps=5, **BY_ITER), ITERS, True),
    (dict(type='OneCycleLR', eta_max=0.1, total_steps=4, end=5, **BY_ITER), ITERS, True),
    (dict(type='OneCycleLR', eta_max=0.1, total_steps=2, begin=3, end=9, **BY_ITER), ITERS, False),
    (dict(type='OneCycleLR', eta_max=0.1, total_steps=3, begin=3, end=9, **BY_ITER), ITERS, True),
    (dict(type='OneCycleLR', eta_max=0.1, total_steps=6, **BY_ITER), EPOCHS, False),
    (dict(type='OneCycleLR', eta_max=0.1, total_steps=7, **BY_ITER), EPOCHS, True),
    (dict(type='OneCycleLR', eta_max=0.1, total_steps=1, **CONVERTED), EPOCHS, False),
    (dict(type='OneCycleLR', eta_max=0.1, total_steps=2, **CONVERTED), EPOCHS, True),
    (dict(type='OneCycleLR', eta_max=0.1, **BY_ITER), ITERS, True),
    # no numbers
    (dict(type='LinearLR', begin='a', end=4, **BY_ITER), ITERS, False),
    (dict(type='LinearLR', begin=0, end=None, **BY_ITER), ITERS, False),
]


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('settings, length, good', CASES, ids=lambda value: str(value).replace("'", ''))
def test_refuses_what_mmengine_fails_on(runner_of, settings, length, good):
    cfg = scheduled(settings, length)
    runner = runner_of(cfg)
    assert accepted(cfg, runner) == good
    assert mmengine_trains(runner) == good
    assert accepted(cfg) or not good  # what is left open without the runner passes


@pytest.mark.parametrize('length', [ITERS, EPOCHS], ids=str)
def test_whole_bounds_are_judged_before_a_runner_exists(length):
    unit = BY_ITER if length is ITERS else {}
    for begin, end in itertools.product(range(4), range(4)):
        for extra in (unit, dict(by_epoch=True), CONVERTED):
            cfg = scheduled([dict(type='LinearLR', begin=begin, end=end, **extra)], length)
            assert accepted(cfg) == (begin < end)


@pytest.mark.parametrize(
    'schedulers, length, words',
    [
        (
            [dict(type='LinearLR', begin=0, end=3), dict(type='PolyLR', begin=40, end=40, by_epoch=False)],
            dict(max_iters=50),
            r'^param_scheduler\.1 \(PolyLR\) with begin=40, end=40 in a run of max_iters=50: .*; set param_scheduler\.1\.end '
            r'above 40$',
        ),
        (
            dict(type='PolyLR', begin=40, by_epoch=False),
            dict(max_iters=20),
            r'^param_scheduler \(PolyLR\) .*begin=40, end=20 \(that of the run.*max_iters=20: .*; set param_scheduler\.end '
            r'above 40$',
        ),
        (
            [dict(type='MultiStepLR', milestones=[8], begin=2)],
            dict(max_iters=20),
            r'begin=2, end=1 .*max_iters=20: .*; set param_scheduler\.0\.end above 2, or param_scheduler\.0\.by_epoch=False',
        ),
        (
            dict(generator=[dict(type='PolyLR', begin=3, end=3)], critic=dict(type='PolyLR')),
            dict(max_epochs=9),
            r'^param_scheduler\.generator\.0 .*max_epochs=9: .*param_scheduler\.generator\.0\.end',
        ),
        (
            [dict(type='OneCycleLR', eta_max=1, total_steps=10, by_epoch=False)],
            dict(max_iters=20),
            r'end=20.*max_iters=20: its 10 total_steps .*; set param_scheduler\.0\.total_steps to cover 19$',
        ),
        ([dict(type='LinearLR', begin=0, end='5%')], dict(max_epochs=9), r"begin=0, end='5%' .*; correct param_scheduler\.0$"),
        # what mmengine says of other settings only when training starts
        ([dict(type='MultiStepLR')], dict(max_epochs=9), r"param_scheduler\.0 .*missing .*'milestones'; correct"),
        ([dict(type='LinearLR', start_factor=2.0)], dict(max_epochs=9), r'Starting multiplicative factor .*; correct'),
        ([dict(type='LinearLR', wrong=2.0)], dict(max_epochs=9), r"unexpected keyword argument 'wrong'; correct"),
        ([dict(type='LinaerLR')], dict(max_epochs=9), r"^param_scheduler\.0: type='LinaerLR' is not registered .*LinearLR"),
    ],
)
def test_message_says_where_and_what_to_set(schedulers, length, words):
    with pytest.raises(UsageError) as caught:
        check_schedules(scheduled(schedulers, length))
    assert re.search(words, str(caught.value)) and '\n' not in str(caught.value), caught.value


def test_one_value_per_parameter_group(runner_of):
    """Two groups, two values: right in a run whose optimizer has two, wrong where it has one."""
    cfg = scheduled([dict(type='OneCycleLR', eta_max=[0.1, 0.2], by_epoch=False)], ITERS)
    runner = runner_of(cfg)
    assert accepted(cfg) and accepted(cfg, runner)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    assert not accepted(cfg, runner)


@pytest.mark.filterwarnings('ignore')
def test_advice_for_parts_of_an_epoch_is_taken(runner_of):
    settings = dict(type='LinearLR', begin=0.3, end=0.45, **CONVERTED)
    cfg = scheduled([settings], EPOCHS)
    with pytest.raises(
        UsageError,
        match=r'in a run of max_epochs=2 of 4 iterations: .*begin=1, end=1; set '
        r'param_scheduler\.0\.end at least one iteration \(0\.25 epochs\) above 0\.3',
    ):
        check_schedules(cfg, runner_of(cfg))
    cfg = scheduled([dict(settings, end=0.3 + 0.25)], EPOCHS)
    assert accepted(cfg, runner_of(cfg))


def test_nothing_to_check():
    check_schedules(Config(dict(train_cfg=dict(max_iters=5))))
    check_schedules(Config(dict(param_scheduler=[dict(type='PolyLR', begin=3, end=2)])))

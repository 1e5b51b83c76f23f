"""Schedules at another length: settings by hand, and learning rates that mmengine's own schedulers give."""

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS

from mmkerneldna.errors import UsageError
from mmkerneldna.launch.shorten import scale_schedule


def epochs_config():
    """mmdet's 1x schedule."""
    return Config(
        dict(
            train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1),
            param_scheduler=[
                dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
                dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1),
            ],
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1), logger=dict(interval=50)),
        )
    )


def iterations_config():
    """mmseg's 160k schedule."""
    return Config(
        dict(
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=160000, val_interval=16000),
            param_scheduler=[
                dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
                dict(type='PolyLR', power=1.0, begin=1500, end=160000, eta_min=0.0, by_epoch=False),
            ],
            default_hooks=dict(checkpoint=dict(by_epoch=False, interval=16000), logger=dict(interval=50)),
            custom_hooks=[dict(type='TemperatureHook', start=30, end=1, length=40000, by_epoch=False)],
        )
    )


def learning_rates(cfg, epochs, epoch_length):
    """What mmengine applies in each iteration of an epoch-based run."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    wrapper, schedulers = OptimWrapper(optimizer), []
    for settings in map(dict, cfg.param_scheduler):
        iterations = settings.pop('convert_to_iter_based', False)
        kind = PARAM_SCHEDULERS.get(settings.pop('type'))
        make = kind.build_iter_from_epoch if iterations else kind
        extra = dict(epoch_length=epoch_length) if iterations else {}
        schedulers.append((make(wrapper, **settings, **extra), settings.get('by_epoch', True) and not iterations))
    rates = []
    for step in range(epochs * epoch_length):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler, by_epoch in schedulers:
            if not by_epoch or (step + 1) % epoch_length == 0:
                scheduler.step()
    return rates


def test_whole_epochs_stay_epochs():
    cfg = epochs_config()
    scale_schedule(cfg, max_epochs=24)
    assert cfg.train_cfg.max_epochs == 24 and cfg.train_cfg.val_interval == 2
    warm_up, steps = cfg.param_scheduler
    assert (warm_up.begin, warm_up.end, warm_up.by_epoch) == (0, 1000, False)
    assert (steps.type, steps.end, steps.milestones) == ('MultiStepLR', 24, [16, 22])
    assert 'convert_to_iter_based' not in steps
    assert cfg.default_hooks.checkpoint.interval == 2 and cfg.default_hooks.logger.interval == 50


@pytest.mark.parametrize('epochs', [1, 2, 3, 5])
def test_decays_between_epochs_come_in_their_iteration(epochs):
    """8/12 and 11/12 of the run, in whole iterations, whatever the length; the last rate stays to the end."""
    cfg, length = epochs_config(), 24
    del cfg.param_scheduler[0]
    scale_schedule(cfg, max_epochs=epochs)
    first, second = epochs * length * 8 // 12, epochs * length * 11 // 12
    expected = [1.0] * first + [0.1] * (second - first) + [0.01] * (epochs * length - second)
    assert learning_rates(cfg, epochs, length) == pytest.approx(expected)


def test_cosine_at_a_fraction_of_its_length():
    """The shape is that of the long run, sampled where the short one is."""

    def config():
        return Config(
            dict(
                train_cfg=dict(max_epochs=10),
                param_scheduler=[
                    dict(type='CosineAnnealingLR', begin=5, end=10, T_max=5, by_epoch=True, convert_to_iter_based=True)
                ],
            )
        )

    long, short = config(), config()
    scale_schedule(short, max_epochs=3)
    assert (short.param_scheduler[0].begin, short.param_scheduler[0].T_max) == (1.5, 1.5)
    whole, part = learning_rates(long, 10, 60), learning_rates(short, 3, 60)
    assert part[:90] == pytest.approx([1.0] * 90) and part[90:] == pytest.approx(
        [whole[300 + round(i / 0.3)] for i in range(90)], abs=0.02
    )


def test_iterations():
    cfg = iterations_config()
    scale_schedule(cfg, max_iters=1600)
    assert (cfg.train_cfg.max_iters, cfg.train_cfg.val_interval) == (1600, 160)
    warm_up, poly = cfg.param_scheduler
    assert (warm_up.begin, warm_up.end, poly.begin, poly.end) == (0, 15, 15, 1600)
    assert cfg.default_hooks.checkpoint.interval == 160 and cfg.default_hooks.logger.interval == 1
    assert cfg.custom_hooks[0].length == 400


def test_a_tiny_run_keeps_a_step_of_everything():
    cfg = iterations_config()
    scale_schedule(cfg, max_iters=10)
    assert cfg.param_scheduler[0].end == 1 and cfg.train_cfg.val_interval == 1
    assert cfg.default_hooks.checkpoint.interval == 1 and cfg.custom_hooks[0].length == 2


def test_steps_of_step_lr():
    cfg = Config(dict(train_cfg=dict(max_epochs=9), param_scheduler=dict(type='StepLR', step_size=3, gamma=0.5)))
    scale_schedule(cfg, max_epochs=3)
    assert [item.milestones for item in cfg.param_scheduler] == [[1, 2]]
    assert learning_rates(cfg, 3, 2) == pytest.approx([1, 1, 0.5, 0.5, 0.25, 0.25])


def test_exponential_decay_ends_at_the_same_rate():
    cfg = Config(dict(train_cfg=dict(max_epochs=8), param_scheduler=[dict(type='ExponentialLR', gamma=0.5)]))
    scale_schedule(cfg, max_epochs=4)
    assert learning_rates(cfg, 4, 1) == pytest.approx([1, 0.25, 0.0625, 0.015625])


def test_schedules_of_several_optimizers():
    cfg = Config(
        dict(
            train_cfg=dict(max_iters=100),
            param_scheduler=dict(
                generator=[dict(type='PolyLR', end=100, by_epoch=False)], critic=dict(type='PolyLR', end=50, by_epoch=False)
            ),
        )
    )
    scale_schedule(cfg, max_iters=10)
    assert cfg.param_scheduler.generator[0].end == 10 and cfg.param_scheduler.critic[0].end == 5


def test_nothing_asked_nothing_changed():
    cfg = epochs_config()
    scale_schedule(cfg)
    assert cfg.pretty_text == epochs_config().pretty_text


@pytest.mark.parametrize(
    'make, lengths, message',
    [
        (epochs_config, dict(max_iters=10), '--max-iters 10: the config counts its training in epochs; use --max-epochs'),
        (iterations_config, dict(max_epochs=1), 'counts its training in iterations; use --max-iters'),
        (epochs_config, dict(max_epochs=0), '--max-epochs 0: at least 1'),
        (epochs_config, dict(max_epochs=1, max_iters=1), 'exclude each other'),
    ],
)
def test_lengths_that_do_not_fit(make, lengths, message):
    cfg = make()
    with pytest.raises(UsageError, match=message):
        scale_schedule(cfg, **lengths)
    assert cfg.pretty_text == make().pretty_text

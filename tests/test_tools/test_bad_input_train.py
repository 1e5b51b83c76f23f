"""Bad configs, values and files of a training or a test."""

import pytest
from bad_input import CHECKPOINT, command_line

TRAIN, TEST = ['train.py', '{det}', '--work-dir', '{tmp}'], ['test.py', '{det}', CHECKPOINT, '--work-dir', '{tmp}']
OPTIONS = ['--cfg-options', 'data_root={shapes}']


def with_option(option):
    return TRAIN + OPTIONS + [option]


#: command line, and what the error line must say
CASES = [
    # configs
    (['train.py', '{place}/notes.txt'], r'config \S+notes\.txt cannot be read: .*'),
    (['train.py', '{place}'], r'config \S+ is a folder'),
    (['train.py', '{place}/nowhere.py'], r'config \S+nowhere\.py does not exist'),
    (['train.py', '{place}/empty.py'], r'config \S+empty\.py has no model'),
    (['train.py', '{place}/raises.py'], r"config \S+raises\.py cannot be read: NameError: .*'undefined'"),
    (['train.py', '{place}/syntax.py'], r'config \S+syntax\.py cannot be read'),
    (['train.py', '{place}/list.json'], r'config \S+list\.json cannot be read'),
    (['train.py', '{place}/broken.json'], r'config \S+broken\.json cannot be read'),
    (['train.py', '{place}/binary.py'], r'config \S+binary\.py cannot be read'),
    (['train.py', '{place}/base.py'], r'config \S+base\.py cannot be read: .*missing_base'),
    (['train.py', '{place}/bare.py'], r'the config has no train_dataloader'),
    (['train.py', 'mmkerneldna::nowhere/none.py'], r'config mmkerneldna::nowhere/none\.py cannot be read'),
    (['train.py', 'nopackage::nowhere/none.py'], r'config nopackage::nowhere/none\.py cannot be read'),
    (['test.py', '{place}/notes.txt', CHECKPOINT], r'config \S+notes\.txt cannot be read'),
    (['test.py', '{place}/bare.py', CHECKPOINT], r'the config has no test_dataloader'),
    # parts of a config that are something else
    (with_option('model=3'), r'model is 3, expected a dict'),
    (with_option('model.backbone=resnet'), r"model\.backbone is 'resnet', expected a dict"),
    (with_option('train_dataloader=5'), r'train_dataloader is 5, expected a dict'),
    (with_option('optim_wrapper.optimizer=SGD'), r"optim_wrapper\.optimizer is 'SGD', expected a dict"),
    (with_option('default_hooks=7'), r'default_hooks is 7, expected a dict'),
    (with_option('custom_hooks=EMAHook'), r"custom_hooks holds 'EMAHook', expected a dict with a type"),
    (with_option('val_evaluator=CocoMetric'), r"val_evaluator holds 'CocoMetric', expected a dict with a type"),
    (with_option('randomness=3'), r'randomness is 3, expected a dict'),
    (with_option('model.backbone.depth.deeper=3'), r'--cfg-options .*model\.backbone\.depth'),
    (with_option('data_root=7'), r'7'),
    # numbers
    (with_option('train_dataloader.batch_size=0'), r'train_dataloader\.batch_size is 0, expected a whole number of at least 1'),
    (with_option('train_dataloader.batch_size=many'), r"train_dataloader\.batch_size is 'many', expected"),
    (with_option('train_dataloader.batch_size=1.5'), r'train_dataloader\.batch_size is 1\.5, expected'),
    (with_option('val_dataloader.batch_size=-2'), r'val_dataloader\.batch_size is -2, expected'),
    (with_option('train_dataloader.num_workers=-1'), r'train_dataloader\.num_workers is -1, expected'),
    (
        TRAIN + OPTIONS + ['train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=True'],
        r'train_dataloader\.num_workers is 0, and persistent_workers=True',
    ),
    (with_option('train_cfg.max_epochs=0'), r'train_cfg\.max_epochs is 0, expected'),
    (with_option('train_cfg.max_epochs=-3'), r'train_cfg\.max_epochs is -3, expected'),
    (with_option('train_cfg.val_interval=0'), r'train_cfg\.val_interval is 0, expected'),
    (
        with_option('optim_wrapper.optimizer.lr=-1'),
        r'optim_wrapper\.optimizer\.lr is -1, expected a finite number of at least 0',
    ),
    (with_option('optim_wrapper.optimizer.lr=nan'), r'optim_wrapper\.optimizer\.lr is nan, expected'),
    (with_option('optim_wrapper.optimizer.lr=1e999'), r'optim_wrapper\.optimizer\.lr is inf, expected'),
    (with_option('optim_wrapper.optimizer.weight_decay=-0.1'), r'optim_wrapper\.optimizer\.weight_decay is -0\.1, expected'),
    (with_option('optim_wrapper.accumulative_counts=0'), r'optim_wrapper\.accumulative_counts is 0, expected'),
    (with_option('randomness.seed=-1'), r'randomness\.seed is -1, expected .*at most 4294967295'),
    (with_option('default_hooks.checkpoint.interval=0'), r'default_hooks\.checkpoint\.interval is 0, expected .*or -1'),
    (with_option('default_hooks.logger.interval=0'), r'default_hooks\.logger\.interval is 0, expected'),
    (with_option('param_scheduler.1.end=-4'), r'param_scheduler\.1 .*end=-4'),
    (TRAIN + ['--seed', '-1'], r"argument --seed: '-1' is not"),
    (TRAIN + ['--seed', str(2**32)], r"argument --seed: '4294967296' is not"),
    (TEST + ['--wait-time', '-1'], r"argument --wait-time: '-1' is not"),
    (TEST + OPTIONS + ['test_dataloader.batch_size=0'], r'test_dataloader\.batch_size is 0, expected'),
    (TRAIN + ['--max-epochs', '0', *OPTIONS], r'--max-epochs'),
    (TRAIN + ['--max-iters', '-5', *OPTIONS], r'--max-iters'),
    # what a constructor refuses
    (with_option('optim_wrapper.optimizer.nonsense=1'), r"unexpected keyword argument 'nonsense'"),
    (with_option('model.backbone.depth=19'), r'no depth 19'),
    (with_option('train_dataloader.sampler.type=NoSampler'), r"type='NoSampler' is not registered"),
    (with_option('train_dataloader.dataset.pipeline.0.type=NoTransform'), r"type='NoTransform' is not registered"),
    (with_option('val_evaluator.type=NoMetric'), r"type='NoMetric' is not registered"),
    # folders and checkpoints
    (['train.py', '{det}', '--work-dir', '{place}/notes.txt', *OPTIONS], r'folder \S+notes\.txt is not writable'),
    (TRAIN + ['--resume', '{place}', *OPTIONS], r'checkpoint \S+ is a folder'),
    (TRAIN + ['--resume', '{place}/nowhere.pth', *OPTIONS], r'checkpoint \S+nowhere\.pth does not exist'),
    (TRAIN + ['--resume', '{place}/empty.pth', *OPTIONS], r'checkpoint \S+empty\.pth is cut short, damaged'),
    (TRAIN + ['--resume', '{place}/list.pth', *OPTIONS], r'checkpoint \S+list\.pth holds a list'),
    (['test.py', '{det}', '{place}', '--work-dir', '{tmp}', *OPTIONS], r'checkpoint \S+ is a folder'),
    (TEST + ['--out', 'a.json', *OPTIONS], r'--out a\.json must be named \*\.pkl'),
]


@pytest.mark.parametrize('command, words', CASES, ids=command_line)
def test_training_and_test_refuse_in_one_line(command, words, refuses):
    refuses(command, words)

"""A run killed by SIGKILL and resumed reaches bit for bit the weights of a run that was left alone."""

import os
import signal
from pathlib import Path

import pytest
import torch
from processes import run_forked
from tiny_runs import DETECTOR, ROOT, SEGMENTER, distill_flags, run_tool, train_argv

from mmkerneldna.checkpoints.loading import read_checkpoint

# A narrow net with blocks behind gates, a tree over images, one over positions, and experts: all anneal or keep running rates.
GATES = """
_base_ = {base!r}
narrow = dict(_base_.model.backbone, base_channels=8, stem_channels=8)
trees = dict(num_experts=2, gate=dict(type='TreeRouter'))
model = dict(
    backbone=dict(
        _delete_=True, type='SkipBlocks', keep=0.25,
        module=dict(type='DynamicConvs', conv=dict(type='MoEConv2d', **trees), include=['layer2.1.conv2'],
                    module=narrow)),
    decode_head=dict(
        _delete_=True, type='DynamicConvs', conv=dict(type='PositionMoE2d', **trees), include=['lateral_convs.0.conv'],
        module=dict(type='DynamicConvs', conv=dict(type='PositionMoE2d', num_experts=2), include=['lateral_convs.1.conv'],
                    module=dict(_base_.model.decode_head, in_channels=[8, 16, 32, 64], channels=8))),
    auxiliary_head=dict(in_channels=32, channels=8),
)
"""


def assert_same_run(one, other):
    assert one['state_dict'].keys() == other['state_dict'].keys()
    for key, value in one['state_dict'].items():
        assert torch.equal(value, other['state_dict'][key]), key
    states, others = one['optimizer']['state'], other['optimizer']['state']
    assert all(torch.equal(states[i]['exp_avg'], others[i]['exp_avg']) for i in states)
    assert one['optimizer']['param_groups'] == other['optimizer']['param_groups']


def killed_run(config, argv, at):
    deadly = Path(argv[argv.index('--work-dir') + 1]).parent / 'deadly.py'
    deadly.write_text(
        f'_base_ = {str(ROOT / config)!r}\n'
        "custom_imports = dict(imports=['mmkerneldna', 'kill_hook'])\n"
        f"custom_hooks = [dict(type='KillHook', at={at})]\n"
    )
    assert run_forked(run_tool, 'train.py', [str(deadly), *argv[1:]]) == -signal.SIGKILL


def cut_short(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    'config, last, kill_at, cut, resumed_from',
    [(DETECTOR, 'epoch_3.pth', 7, 'epoch_2.pth', 'epoch_1.pth'), (SEGMENTER, 'iter_6.pth', 4, None, 'iter_4.pth')],
    ids=['detector, last checkpoint cut short', 'distilled segmenter with gates, other number of workers'],
)
def test_killed_and_resumed(config, last, kill_at, cut, resumed_from, shapes, tmp_path, capfd):
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    like, teacher = None, ()
    if config == SEGMENTER:
        like = SEGMENTER
        teacher = distill_flags(config, tmp_path / 'teacher.pth')
        config = tmp_path / 'gates.py'
        config.write_text(GATES.format(base=str(ROOT / SEGMENTER)))
    # 'numpy' and 'random' state must not leak from one run into the next: each draws from (seed, position) only.
    assert run_tool('train.py', train_argv(config, shapes, whole, *teacher, like=like)) == 0
    killed_run(config, train_argv(config, shapes, broken, *teacher, like=like), kill_at)
    assert not (broken / last).exists()
    if cut:
        cut_short(broken / cut)
    workers = ['train_dataloader.num_workers=1'] if cut is None else []
    assert run_tool('train.py', train_argv(config, shapes, broken, *teacher, '--resume', options=workers, like=like)) == 0
    log = ''.join(path.read_text() for path in broken.rglob('*.log'))
    assert 'resumed epoch' in log and str(broken / resumed_from) in capfd.readouterr().out
    assert_same_run(read_checkpoint(whole / last), read_checkpoint(broken / last))

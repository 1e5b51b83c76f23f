"""Distillation by the tools as a user runs them."""

import json
from pathlib import Path

import pytest
from tiny_runs import DETECTOR, ROOT, SEGMENTER, SMALL, distill_flags, narrow_config, run_tool, train_argv, weights

from mmkerneldna.checkpoints.loading import read_checkpoint

SHORT = {
    DETECTOR: ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1'],
    SEGMENTER: ['train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'default_hooks.logger.interval=1'],
}


def scalars(work_dir):
    return [json.loads(line) for path in Path(work_dir).rglob('vis_data/scalars.json') for line in path.open()]


@pytest.mark.parametrize('config, key', [(DETECTOR, 'loss_pkd_levels'), (SEGMENTER, 'loss_cwd_logits')])
def test_a_distilled_student_is_a_plain_model(config, key, shapes, tmp_path):
    """The dense net teaches the net with shared kernels; the test tool takes the checkpoint with the plain config."""
    flags = distill_flags(config, tmp_path / 'teacher.pth')
    before = (tmp_path / 'teacher.pth').read_bytes()
    assert run_tool('train.py', train_argv(config, shapes, tmp_path / 'run', *flags, options=SHORT[config])) == 0
    logged = [line[key] for line in scalars(tmp_path / 'run') if key in line]
    assert logged and all(value > 0 for value in logged)
    assert any('cost/unique_params_m' in line for line in scalars(tmp_path / 'run'))
    assert (tmp_path / 'teacher.pth').read_bytes() == before
    (last,) = (tmp_path / 'run').glob('*_[12].pth')
    plain = weights(narrow_config(config), tmp_path / 'plain.pth')
    assert list(read_checkpoint(last)['state_dict']) == list(plain.state_dict())
    argv = [str(ROOT / config), str(last), '--work-dir', str(tmp_path / 'test'), '--cfg-options', f'data_root={shapes}']
    assert run_tool('test.py', [*argv, *SMALL[config]]) == 0


def test_a_missing_teacher_is_one_line_before_training(shapes, tmp_path, capfd):
    argv = train_argv(SEGMENTER, shapes, tmp_path, '--distill-from', ROOT / SEGMENTER, tmp_path / 'none.pth')
    assert run_tool('train.py', argv) == 2
    assert [line for line in capfd.readouterr().err.splitlines() if line.startswith('error:')] == [
        f'error: checkpoint {tmp_path / "none.pth"} does not exist'
    ]

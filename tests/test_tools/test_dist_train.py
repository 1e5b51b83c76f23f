"""tools/dist_train.sh with two processes; without a GPU they talk by gloo."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from tiny_runs import ROOT, SEGMENTER, distill_flags, train_argv

from mmkerneldna.checkpoints.loading import read_checkpoint


def free_port():
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return str(server.getsockname()[1])


def test_two_processes(shapes, tmp_path):
    """Both hold the teacher that the run learns from."""
    config, *flags = train_argv(
        SEGMENTER,
        shapes,
        tmp_path,
        *distill_flags(SEGMENTER, tmp_path / 'teacher.pth'),
        options=[
            'train_cfg.max_iters=2',
            'train_cfg.val_interval=2',
            'default_hooks.logger.interval=1',
            'train_dataloader.dataset.pipeline.2.crop_size=(64,64)',
            'model.data_preprocessor.size=(64,64)',
        ],
    )
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    env = {**os.environ, 'PATH': path, 'PORT': free_port(), 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
    done = subprocess.run(
        ['bash', str(ROOT / 'tools/dist_train.sh'), config, '2', *flags], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    log = ''.join(path.read_text() for path in tmp_path.rglob('*.log'))
    assert 'Distributed training: True' in log and 'GPU number: 2' in log
    assert 'loss_cwd_logits' in log
    assert read_checkpoint(tmp_path / 'iter_2.pth')['meta']['iter'] == 2

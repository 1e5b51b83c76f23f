"""Runs of tools/train.py and tools/test.py small enough for a test: the shapes configs on twelve small images."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import torch
from helpers import randomise
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

ROOT = Path(__file__).resolve().parents[2]
DETECTOR = 'configs/shapes/faster-rcnn_kdna-r18_fpn_shapes.py'
SEGMENTER = 'configs/shapes/upernet_kdna-r18_shapes.py'
TEACHERS = {DETECTOR: 'configs/shapes/faster-rcnn_r18_fpn_shapes.py', SEGMENTER: 'configs/shapes/upernet_r18_shapes.py'}
SMALL = {
    DETECTOR: [
        'train_cfg.max_epochs=3',
        'train_cfg.val_interval=3',
        'train_dataloader.batch_size=4',
        'train_dataloader.dataset.pipeline.2.scale=(96,96)',
        'val_dataloader.dataset.pipeline.1.scale=(96,96)',
        'default_hooks.checkpoint.max_keep_ckpts=3',
    ],
    SEGMENTER: [
        'train_cfg.max_iters=6',
        'train_cfg.val_interval=3',
        'train_dataloader.batch_size=2',
        'model.data_preprocessor.size=(96,96)',
        'train_dataloader.dataset.pipeline.2.crop_size=(96,96)',
        'default_hooks.checkpoint.interval=2',
        'default_hooks.checkpoint.max_keep_ckpts=5',
    ],
}


def train_argv(config, data, work_dir, *flags, options=(), like=None):
    """Arguments of tools/train.py for a small, seeded run; of a config that is based on ``like``, one of SMALL."""
    return [
        str(ROOT / config),
        '--work-dir',
        str(work_dir),
        '--seed',
        '3',
        '--deterministic',
        *map(str, flags),
        '--cfg-options',
        f'data_root={data}',
        *SMALL[like or config],
        *options,
    ]


def weights(config, path):
    """A file of made-up weights for the model of a config."""
    cfg = Config.fromfile(ROOT / config)
    init_default_scope(cfg.default_scope)
    model = randomise(MODELS.build(cfg.model))
    torch.save(dict(state_dict=model.state_dict()), path)
    return model


def distill_flags(config, path):
    """Learn from the static net of a config, with made-up weights that go to ``path``."""
    weights(TEACHERS[config], path)
    return '--distill-from', ROOT / TEACHERS[config], path


def run_tool(tool, argv):
    """Run a tool in this process and return its exit status (an import of mmdet costs seconds)."""
    old, sys.argv = sys.argv, [tool, *argv]
    environment = dict(os.environ)
    try:
        runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')
    except SystemExit as stop:
        return stop.code
    finally:
        sys.argv = old
        os.environ.clear()
        os.environ.update(environment)
        torch.use_deterministic_algorithms(False)
    return 0


def run_process(tool, argv):
    """Run a tool in a process of its own."""
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': f'{ROOT}{os.pathsep}{Path(__file__).parent}'}
    return subprocess.run(
        [sys.executable, str(ROOT / 'tools' / tool), *argv], env=env, capture_output=True, text=True, timeout=300
    )

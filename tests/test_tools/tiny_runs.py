"""Runs of tools/train.py and tools/test.py small enough for a test: the shapes configs on twelve small images."""

import os
import runpy
import sys

import torch
from helpers import randomise
from mmengine.registry import MODELS, init_default_scope
from narrow import DETECTOR, NARROW, ROOT, SEGMENTER, narrow_config

TEACHERS = {DETECTOR: 'configs/shapes/faster-rcnn_r18_fpn_shapes.py', SEGMENTER: 'configs/shapes/upernet_r18_shapes.py'}
#: settings of a short run on small images
SHORT = {
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


def narrow_options(config):
    """``NARROW`` of a config, for a command line."""
    return [f'{key}={value}'.replace(' ', '') for key, value in NARROW[config].items()]


SMALL = {config: [*narrow_options(config), *SHORT[config]] for config in NARROW}


def train_argv(config, data, work_dir, *flags, options=(), like=None):
    """Arguments of tools/train.py for a small, seeded run; of a narrow config that is based on ``like``, one of SHORT."""
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
        *(SHORT[like] if like else SMALL[config]),
        *options,
    ]


def weights(cfg, path):
    """A file of made-up weights for the model of a config."""
    init_default_scope(cfg.default_scope)
    model = randomise(MODELS.build(cfg.model))
    torch.save(dict(state_dict=model.state_dict()), path)
    return model


def distill_flags(config, path):
    """Learn from the narrow static net of a config, with made-up weights that go to ``path``, beside its config."""
    cfg = narrow_config(TEACHERS[config], like=config)
    cfg.dump(path.with_suffix('.py'))
    weights(cfg, path)
    return '--distill-from', path.with_suffix('.py'), path


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

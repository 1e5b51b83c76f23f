"""What the tools do before a Runner gets the config."""

from .config import (
    add_hook,
    build_loops,
    build_runner,
    join_cpu_processes,
    load_config,
    make_folder,
    set_resume,
    set_seed,
    set_work_dir,
    unsync_batch_norm,
    use_amp,
    use_auto_scale_lr,
)
from .repeatable import PlacedSampler, make_repeatable

__all__ = [
    'PlacedSampler',
    'add_hook',
    'build_loops',
    'build_runner',
    'join_cpu_processes',
    'load_config',
    'make_folder',
    'make_repeatable',
    'set_resume',
    'set_seed',
    'set_work_dir',
    'unsync_batch_norm',
    'use_amp',
    'use_auto_scale_lr',
]

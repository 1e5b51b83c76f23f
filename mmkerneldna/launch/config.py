"""What the training and the test tool do to a config before a Runner gets it, for detection and segmentation alike."""

import os
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..anatomy import unwrap
from ..checkpoints.loading import find_whole_checkpoint, read_checkpoint
from ..config_files import read_config
from ..datasets import override_data_root
from ..distill import prepare_distillation
from ..errors import UsageError, explain, one_line
from .preflight import check_optimizer_type
from .quiet import QuietOutput
from .settings import check_parts
from .variant import add_layer_hooks, inside_swap, use_variant

PathLike = str | os.PathLike


def load_config(name: str, options: dict | None = None, launcher: str = 'none', variant: str | None = None) -> Config:
    """Read a config from a file, or from an installed package by ``mmkerneldna::folder/name.py``.

    Args:
        name: of the config.
        options: ``{'key.key': value}`` that override it; they come after the variant.
        launcher: of the processes.
        variant: what to make of its backbone, see :func:`.variant.use_variant`.

    Raises:
        UsageError: there is no such file, it can't be parsed, needs a package that is missing, or can't be this variant.
    """
    cfg = read_config(name)
    cfg.launcher = launcher
    options = dict(options or {})
    if 'data_root' in options:  # paths were joined with it while the config was read
        override_data_root(cfg, str(options.pop('data_root')))
    if 'model' not in cfg:
        raise UsageError(f'config {name} has no model: it is a base, name one of the configs built on it')
    check_parts(cfg)
    use_variant(cfg, variant)
    try:
        cfg.merge_from_dict(inside_swap(options, cfg))
    except (AssertionError, LookupError, TypeError, ValueError) as error:
        raise UsageError(f'--cfg-options {" ".join(map(str, options))}: {one_line(error)}') from error
    check_parts(cfg)
    return cfg


def set_work_dir(cfg: Config, name: str, work_dir: str | None) -> None:
    """Command line over config over ``work_dirs/<config name>[_<variant>]``; create it, make sure that it can be written.

    Raises:
        UsageError: it can't.
    """
    run_name = '_'.join(filter(None, (Path(name.split('::')[-1]).stem, cfg.get('variant'))))
    cfg.work_dir = work_dir or cfg.get('work_dir') or os.path.join('work_dirs', run_name)
    make_folder(cfg.work_dir, '--work-dir')


def make_folder(path: PathLike, flag: str) -> None:
    """Create a folder for results, and make sure that it can be written, before anything slow.

    Raises:
        UsageError: it can't; names ``flag``, by which the user names another.
    """
    try:
        os.makedirs(path, exist_ok=True)
        tempfile.TemporaryFile(dir=str(path)).close()
    except OSError as error:
        raise UsageError(f'folder {path} is not writable ({error.strerror}); name another by {flag}') from error


def unsync_batch_norm(cfg: Config) -> None:
    """Replace ``SyncBN`` by ``BN`` in the model config where one process or a CPU can't run it; say so once."""
    if cfg.launcher != 'none' and torch.cuda.is_available():
        return
    count = _replace_type(cfg.model, 'SyncBN', 'BN')
    if count:
        print_log(
            f'SyncBN needs several GPU processes: {count} norm settings of the model are BN in this run.', logger='current'
        )


def _replace_type(node, old: str, new: str) -> int:
    if isinstance(node, dict):
        found = int(node.get('type') == old)
        if found:
            node['type'] = new
        return found + sum(_replace_type(value, old, new) for value in node.values())
    return sum(_replace_type(value, old, new) for value in node) if isinstance(node, (list, tuple)) else 0


def add_hook(cfg: Config, hook: dict) -> None:
    """Add a custom hook unless the config has one of its type."""
    hooks = cfg.get('custom_hooks') or []
    if all(known['type'] != hook['type'] for known in hooks):
        cfg.custom_hooks = [*hooks, hook]


def use_amp(cfg: Config) -> None:
    """Train in mixed precision.

    Raises:
        UsageError: no GPU, or an optimizer wrapper of another kind.
    """
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise UsageError(f"--amp takes the place of an 'OptimWrapper', and the config has {kind!r}")
    if not torch.cuda.is_available():
        raise UsageError('--amp needs a CUDA device, and torch sees none')
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def use_auto_scale_lr(cfg: Config) -> None:
    """Scale the learning rate to the real batch size.

    Raises:
        UsageError: the config does not say for what batch size its learning rate is.
    """
    if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
        raise UsageError(
            '--auto-scale-lr needs the batch size that the learning rate was chosen for: set '
            'auto_scale_lr=dict(base_batch_size=...) in the config'
        )
    cfg.auto_scale_lr.enable = True


def set_seed(cfg: Config, seed: int | None, deterministic: bool) -> None:
    """Take the seed and the determinism from the command line."""
    randomness = cfg.setdefault('randomness', ConfigDict())
    randomness.setdefault('seed', None)  # the Runner insists on the key
    if seed is not None:
        randomness.seed = seed
    if deterministic:
        randomness.deterministic = True


def set_resume(cfg: Config, resume: str | None, unsafe: bool = False) -> None:
    """Resume from a named checkpoint, or for ``'auto'`` from the newest whole one in the work_dir, if there is any.

    The seed comes from the checkpoint: mmengine restores it only after the sampler has drawn the order of the data.

    Raises:
        CheckpointError: the checkpoint named, or every one there is, can't be read.
        UsageError: it holds weights only.
    """
    if resume is None:
        return
    if resume == 'auto':
        found = find_whole_checkpoint(cfg.work_dir, unsafe)
        if found is None:
            print_log(f'no checkpoint in {cfg.work_dir} to resume from: starting anew', logger='current')
            return
    else:
        found = resume, read_checkpoint(resume, unsafe=unsafe)
    cfg.load_from, checkpoint = found
    if not {'meta', 'optimizer'} <= set(checkpoint):
        raise UsageError(
            f'checkpoint {cfg.load_from} holds no optimizer state to resume; start from its weights with '
            f'--cfg-options load_from={cfg.load_from}'
        )
    cfg.resume = True
    seed = checkpoint['meta'].get('seed')
    if seed is not None:
        cfg.setdefault('randomness', ConfigDict()).seed = seed


def join_cpu_processes(cfg: Config) -> None:
    """Join the processes of ``--launcher pytorch`` on a machine without CUDA, where mmengine wants a GPU for each."""
    if cfg.launcher != 'pytorch' or torch.cuda.is_available() or dist.is_initialized():
        return
    dist.init_process_group('gloo')
    cfg.setdefault(
        'model_wrapper_cfg',
        dict(
            type='MMDistributedDataParallel',
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        ),
    )


def build_runner(cfg: Config, output: QuietOutput | None = None) -> Runner:
    """The Runner, of the type that the config names, with its model.

    Args:
        cfg: the whole config.
        output: shows where the run is, and keeps the Runner's log away from the screen; None for mmengine's usual output.

    Raises:
        UsageError: a constructor refuses what the config says; the traceback goes to ``<work_dir>/error.txt``.
    """
    join_cpu_processes(cfg)
    with _refused_in_a_line(cfg):
        check_optimizer_type(cfg)
        kind = RUNNERS.get(cfg.get('runner_type', 'Runner'))
        runner = (output.runner_class(kind) if output else kind).from_cfg(cfg)
    if output:
        output.watch(runner)
    if 'train_dataloader' in cfg:
        add_layer_hooks(runner)
    return runner


def build_loops(runner: Runner, *splits: str) -> None:
    """Build the loops with their data, for ``'train'`` the optimizer and a teacher too, which are left until a run starts.

    Raises:
        UsageError: as for :func:`build_runner`.
    """
    with _refused_in_a_line(runner.cfg):
        for split in splits:
            getattr(runner, f'{split}_loop')
        if 'train' in splits:
            runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
            prepare_distillation(unwrap(runner.model))


@contextmanager
def _refused_in_a_line(cfg: Config) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # constructors of many packages
        if explain(error) is not None:
            raise
        path = Path(cfg.work_dir, 'error.txt')
        path.write_text(traceback.format_exc())
        raise UsageError(f'the config cannot be built: {one_line(error)} (traceback in {path})') from error

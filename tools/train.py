"""Train a detector or a segmenter from a config."""

import argparse

import _before_imports  # noqa: F401  (before torch)

from mmkerneldna import launch
from mmkerneldna.checkpoints.loading import install_safe_loading
from mmkerneldna.datasets import check_data
from mmkerneldna.errors import one_line_errors
from mmkerneldna.launch import preflight
from mmkerneldna.launch.arguments import add_length_arguments, parse_run_arguments, seed
from mmkerneldna.launch.coco_scores import use_fast_coco_scores
from mmkerneldna.launch.distill_from import add_distill_argument, use_distillation
from mmkerneldna.launch.quiet import quiet_output
from mmkerneldna.launch.repeatable import make_repeatable
from mmkerneldna.launch.schedules import check_schedules
from mmkerneldna.launch.settings import check_settings
from mmkerneldna.launch.shorten import scale_schedule
from mmkerneldna.sharing import use_owner_settings


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='a file, or package::folder/name.py of an installed package: mmkerneldna, mmdet, mmseg')
    parser.add_argument('--work-dir', help='where logs and checkpoints go (default: work_dirs/<config name>)')
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate to the real batch size')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from this checkpoint, or from the newest whole one in the work dir',
    )
    parser.add_argument('--seed', type=seed, help='seed of the run')
    parser.add_argument('--deterministic', action='store_true', help='deterministic algorithms (slower on a GPU)')
    parser.add_argument(
        '--allow-partial-load', action='store_true', help='load_from a checkpoint of another head or backbone as far as it fits'
    )
    add_length_arguments(parser)
    add_distill_argument(parser)
    return parse_run_arguments(parser)


def prepare_config(args):
    """The config as the Runner gets it."""
    cfg = launch.load_config(args.config, args.cfg_options, args.launcher, args.variant)
    check_settings(cfg, needed=('train_dataloader.dataset', 'train_dataloader.sampler', 'train_cfg', 'optim_wrapper.optimizer'))
    scale_schedule(cfg, args.max_epochs, args.max_iters)
    launch.set_work_dir(cfg, args.config, args.work_dir)
    launch.set_seed(cfg, args.seed, args.deterministic)
    launch.set_resume(cfg, args.resume, args.unsafe_checkpoint)
    if args.amp:
        launch.use_amp(cfg)
    if args.auto_scale_lr:
        launch.use_auto_scale_lr(cfg)
    launch.unsync_batch_norm(cfg)
    use_fast_coco_scores(cfg)
    launch.add_hook(cfg, dict(type='CheckpointFitHook', allow_partial=args.allow_partial_load))
    launch.add_hook(cfg, dict(type='CostHook'))
    make_repeatable(cfg)
    use_distillation(cfg, args.distill_from)
    return cfg


def main():
    args = parse_args()
    with one_line_errors(), quiet_output() as output:
        install_safe_loading(args.unsafe_checkpoint)
        cfg = prepare_config(args)
        check_data(cfg, splits=('train', 'val'), on_corrupt=args.corrupt_images)
        preflight.check_num_classes(cfg)
        preflight.warn_frozen_random(cfg)
        check_schedules(cfg)
        runner = launch.build_runner(cfg, output)
        use_owner_settings(runner.model, runner.optim_wrapper)
        launch.build_loops(runner, 'train', 'val')
        check_schedules(cfg, runner)
        runner.train()


if __name__ == '__main__':
    main()

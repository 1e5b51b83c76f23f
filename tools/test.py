"""Test a detector or a segmenter: scores and what they cost."""

import argparse

import _before_imports  # noqa: F401  (before torch)

from mmkerneldna import launch
from mmkerneldna.checkpoints.loading import install_safe_loading
from mmkerneldna.datasets import check_data
from mmkerneldna.deploy.exported_model import is_exported_name
from mmkerneldna.errors import UsageError, one_line_errors
from mmkerneldna.launch import predictions
from mmkerneldna.launch.arguments import add_deploy_arguments, deploy_options, number, parse_run_arguments
from mmkerneldna.launch.coco_scores import use_fast_coco_scores
from mmkerneldna.launch.exported import use_exported_file
from mmkerneldna.launch.quiet import quiet_output
from mmkerneldna.launch.settings import check_settings


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='a file, or package::folder/name.py of an installed package: mmkerneldna, mmdet, mmseg')
    parser.add_argument('checkpoint', help='checkpoint to test, or a file of tools/export.py --end2end (.onnx, .xml, .pt2)')
    parser.add_argument('--work-dir', help='where metrics go (default: work_dirs/<config name>)')
    parser.add_argument('--out', help='keep the predictions: a .pkl file (detection) or a folder (segmentation)')
    parser.add_argument('--show', action='store_true', help='show predictions')
    parser.add_argument('--show-dir', help='folder for painted predictions')
    parser.add_argument('--wait-time', type=number(0, whole=False), default=2, help='seconds per image of --show')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    add_deploy_arguments(parser, 'score and time')
    return parse_run_arguments(parser)


def prepare_config(args):
    """The config as the Runner gets it."""
    options = deploy_options(args)
    cfg = launch.load_config(args.config, args.cfg_options, args.launcher, args.variant)
    check_settings(cfg, needed=('test_dataloader.dataset', 'test_cfg', 'test_evaluator'))
    launch.set_work_dir(cfg, args.config, args.work_dir)
    if is_exported_name(args.checkpoint):
        use_file(cfg, args)
    else:
        cfg.load_from, cfg.resume = args.checkpoint, False
    if args.show or args.show_dir:
        predictions.draw_predictions(cfg, args.show, args.show_dir, args.wait_time)
    if args.out:
        predictions.dump_predictions(cfg, args.out)
    if args.tta:
        predictions.use_tta(cfg)
    launch.unsync_batch_norm(cfg)
    use_fast_coco_scores(cfg)
    launch.add_hook(cfg, dict(type='CheckpointFitHook'))
    if options is not None:
        launch.add_hook(cfg, dict(type='DeployHook', **options))
    launch.add_hook(cfg, dict(type='CostHook'))
    return cfg


def use_file(cfg, args):
    """Let an exported file predict, where no flag asks for what it can't do."""
    for flag in ('deploy', 'tta'):
        if getattr(args, flag):
            raise UsageError(f'--{flag} changes a model, and {args.checkpoint} is an exported file: leave the flag out')
    use_exported_file(cfg, args.checkpoint)


def main():
    args = parse_args()
    with one_line_errors(), quiet_output() as output:
        install_safe_loading(args.unsafe_checkpoint)
        cfg = prepare_config(args)
        check_data(cfg, splits=('test',), on_corrupt=args.corrupt_images)
        runner = launch.build_runner(cfg, output)
        launch.build_loops(runner, 'test')
        runner.test()


if __name__ == '__main__':
    main()

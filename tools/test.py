"""Test a detector or a segmenter: scores and what they cost."""
import argparse
import os

from mmengine.config import DictAction

from mmkerneldna.checkpoints.loading import install_safe_loading
from mmkerneldna.datasets import check_data
from mmkerneldna.engine import launch, predictions
from mmkerneldna.engine.user_errors import one_line_errors


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='a file, or mmkerneldna::folder/name.py of the installed package')
    parser.add_argument('checkpoint', help='checkpoint to test')
    parser.add_argument('--work-dir', help='where metrics go (default: work_dirs/<config name>)')
    parser.add_argument('--out', help='keep the predictions: a .pkl file (detection) or a folder (segmentation)')
    parser.add_argument('--show', action='store_true', help='show predictions')
    parser.add_argument('--show-dir', help='folder for painted predictions')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds per image of --show')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    parser.add_argument('--deploy', action='store_true',
                        help='score and time the deployed model: children baked, norms folded')
    parser.add_argument('--compile', nargs='?', const=True, default=False, choices=['dynamic', 'onednn'],
                        help='with --deploy: torch.compile at fixed sizes, or for any size, or oneDNN programs (CPU)')
    parser.add_argument('--cuda-graph', action='store_true', help='with --deploy: replay CUDA graphs')
    parser.add_argument('--corrupt-images', choices=['fatal', 'skip'], default='fatal',
                        help='what to do about images that do not decode')
    parser.add_argument('--unsafe-checkpoint', action='store_true',
                        help='read a file that holds more than weights; that can run code: only for files you trust')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='override the config')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def prepare_config(args):
    """The config as the Runner gets it."""
    cfg = launch.load_config(args.config, args.cfg_options, args.launcher)
    launch.set_work_dir(cfg, args.config, args.work_dir)
    cfg.load_from, cfg.resume = args.checkpoint, False
    if args.show or args.show_dir:
        predictions.draw_predictions(cfg, args.show, args.show_dir, args.wait_time)
    if args.out:
        predictions.dump_predictions(cfg, args.out)
    if args.tta:
        predictions.use_tta(cfg)
    launch.unsync_batch_norm(cfg)
    launch.add_hook(cfg, dict(type='CheckpointFitHook'))
    if args.deploy:
        launch.add_hook(cfg, dict(type='DeployHook', compile=args.compile, cuda_graph=args.cuda_graph))
    launch.add_hook(cfg, dict(type='CostHook'))
    return cfg


def main():
    args = parse_args()
    with one_line_errors():
        install_safe_loading(args.unsafe_checkpoint)
        cfg = prepare_config(args)
        check_data(cfg, splits=('test', ), on_corrupt=args.corrupt_images)
        launch.build_runner(cfg).test()


if __name__ == '__main__':
    main()

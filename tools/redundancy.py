"""Which convs of a trained net could share a kernel: every two of equal shape, compared.

    python tools/redundancy.py STATIC_CONFIG STATIC.pth --out out                      # kernels alone
    python tools/redundancy.py STATIC_CONFIG STATIC.pth --data --out out               # and outputs on the training images
    python tools/redundancy.py STATIC_CONFIG STATIC.pth --images DIR --validate 20 --out out

For each pair: the error of the parent's kernel with the best factors per filter and per tap; with images 1 - R² of the
child's output, and linear CKA of the two blocks. DIR gets the table as redundancy.json and redundancy.csv, heatmaps.png and
dendrogram.png. --validate derives that many plans of a single child and says how well the predicted damage ranks what they
really cost, on other images where there are enough. --plan redundancy:BUDGET of tools/derive.py uses the same prediction.
"""

import argparse
from pathlib import Path

import _before_imports  # noqa: F401  (before torch)

from mmkerneldna import launch
from mmkerneldna.checkpoints.loading import install_safe_loading
from mmkerneldna.checkpoints.remote import fetch
from mmkerneldna.derive import measure_redundancy
from mmkerneldna.derive.redundancy import BATCHES
from mmkerneldna.derive.redundancy_policy import with_weights
from mmkerneldna.derive.redundancy_report import pair_table, trial_table, write_redundancy
from mmkerneldna.derive.redundancy_validation import FEWEST, validate
from mmkerneldna.derive.run import Images
from mmkerneldna.errors import UsageError, one_line_errors
from mmkerneldna.launch.arguments import (
    add_cfg_options_argument,
    add_device_argument,
    add_unsafe_argument,
    add_verbose_argument,
    number,
)
from mmkerneldna.launch.images import add_image_arguments, find_images
from mmkerneldna.launch.quiet import quiet_output
from mmkerneldna.launch.sharing import without_sharing
from mmkerneldna.measure.benchmark import build_from_config


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='of the trained net; shared kernels of its backbone are left out')
    parser.add_argument('checkpoint', help='dense weights: a file, torchvision://..., open-mmlab://... or an address')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='where tables and pictures go')
    add_image_arguments(parser)
    parser.add_argument('--batches', type=number(1), default=BATCHES, help=f'of images to look at (default: {BATCHES})')
    parser.add_argument('--validate', type=number(FEWEST), metavar='N', help='derive N plans of a single child; needs images')
    add_unsafe_argument(parser)
    add_cfg_options_argument(parser)
    add_device_argument(parser)
    add_verbose_argument(parser)
    return parser.parse_args()


def trained_model(args, cfg):
    """The dense model of the config with the checkpoint's weights."""
    launch.unsync_batch_norm(cfg)
    return with_weights(build_from_config(cfg), fetch(args.checkpoint)).to(args.device)


def measure(args):
    """The dense model, batches of images if there are any, and what its convs have in common."""
    install_safe_loading(args.unsafe_checkpoint)
    cfg = without_sharing(launch.load_config(args.config, args.cfg_options))
    model = trained_model(args, cfg)
    images = find_images(args, cfg, model)
    batches = None if images is None else Images(images).take(args.batches * (2 if args.validate else 1))
    redundancy = measure_redundancy(model, batches and batches[: args.batches], args.batches)
    if not redundancy.pairs:
        raise UsageError(f'{type(model).__name__} has no two plain convs of equal kernel shape and groups to compare')
    return model, batches, redundancy


def main():
    args = parse_args()
    with one_line_errors():
        if args.validate and not (args.images or args.data):
            raise UsageError(f'--validate {args.validate} needs images: add --images DIR or --data')
        with quiet_output():
            model, batches, redundancy = measure(args)
        launch.make_folder(args.out, '--out')
        print(pair_table(redundancy))
        trials = []
        if args.validate:
            with quiet_output():
                trials = list(validate(model, redundancy, batches[: args.batches], batches[args.batches :], args.validate))
            print(trial_table(trials))
        for path in write_redundancy(args.out, redundancy, trials):
            print(f'wrote {path}')


if __name__ == '__main__':
    main()

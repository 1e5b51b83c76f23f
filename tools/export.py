"""Export a trained model, deployed, and check the file against torch.

    python tools/export.py configs/retinanet/retinanet_kdna-r18_fpn_1x_coco.py work_dirs/x/epoch_12.pth --format onnx
    python tools/export.py CONFIG CHECKPOINT --format pt2 --scope model --size 512x512 --dynamic batch

The file takes images as the data preprocessor leaves them: normalised (mean and std are printed), sides a multiple of 32.
--scope model gives a segmenter's logits at the size of the image, a detector's raw head outputs: no decoding, no NMS; of a
two-stage detector features and RPN outputs. A pt2 file (AOTInductor) runs without this package and without mm libraries:
torch._inductor.aoti_load_package(FILE)(images).
"""

import argparse
import os
from pathlib import Path

import _before_imports  # noqa: F401  (before torch)
from mmengine.runner import CheckpointLoader, load_checkpoint
from rich.console import Console

from mmkerneldna import launch
from mmkerneldna.checkpoints.loading import check_architecture, install_safe_loading
from mmkerneldna.deploy import lean_copy
from mmkerneldna.deploy.export import DYNAMIC, SCOPES, WRITERS, export
from mmkerneldna.errors import UsageError, one_line_errors
from mmkerneldna.launch.arguments import add_unsafe_argument, add_verbose_argument, image_size
from mmkerneldna.measure.benchmark import build_from_config


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a file, or mmkerneldna::folder/name.py of the installed package')
    parser.add_argument('checkpoint', help='weights of the whole model')
    parser.add_argument('--format', choices=list(WRITERS), required=True)
    parser.add_argument('--scope', choices=SCOPES, default='backbone', help='neck: backbone and neck')
    parser.add_argument('--size', type=image_size, default=(512, 512), metavar='N|HxW', help='of the example image')
    parser.add_argument('--dynamic', choices=DYNAMIC, default='both', help='what may vary: batch and size, batch, nothing')
    parser.add_argument('--out', type=Path, help='file (default: beside the checkpoint)')
    add_unsafe_argument(parser)
    add_verbose_argument(parser)
    return parser.parse_args()


def target(args) -> Path:
    """The file to write, refused before anything slow where it can't be."""
    suffix = {'onnx': '.onnx', 'torchscript': '.ts', 'pt2': '.pt2'}[args.format]
    path = args.out or Path(args.checkpoint).with_name(f'{Path(args.config).stem}_{args.scope}{suffix}')
    if path.is_dir():
        raise UsageError(f'{path} is a folder: name a file in it by --out')
    if not path.parent.is_dir():
        raise UsageError(f'folder {path.parent} does not exist: make it, or name a file elsewhere by --out')
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f'folder {path.parent} is not writable: name a file elsewhere by --out')
    return path


def load_model(cfg, checkpoint: dict, args):
    """The model of a config with the weights of the checkpoint."""
    launch.unsync_batch_norm(cfg)
    model = build_from_config(cfg)
    check_architecture(model, checkpoint, args.checkpoint)
    load_checkpoint(model, args.checkpoint, map_location='cpu', strict=True)
    return model.eval()


def main():
    args, console = parse_args(), Console()
    cfg = launch.load_config(args.config)
    install_safe_loading(args.unsafe_checkpoint)
    checkpoint = CheckpointLoader.load_checkpoint(args.checkpoint, map_location='cpu')
    path = target(args)
    model = load_model(cfg, checkpoint, args)
    facts = export(lean_copy(model), path, args.format, args.scope, args.size, args.dynamic)
    preprocessor = cfg.model.get('data_preprocessor') or {}
    facts['preprocess'] = {key: preprocessor.get(key) for key in ('mean', 'std', 'bgr_to_rgb', 'pad_size_divisor')}
    checked = facts.pop('checked')
    for key, value in facts.items():
        console.print(f'{key}: {value}')
    for shape, deviation in checked.items():
        console.print(f'checked at {shape}: off by {deviation:.1e} of the largest output')


if __name__ == '__main__':
    with one_line_errors():
        main()

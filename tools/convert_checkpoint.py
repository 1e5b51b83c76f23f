"""Rewrite a released checkpoint of a dynamic backbone into a state dict of ours.

    python tools/convert_checkpoint.py kdna-resnet18 released.pth kdna_r18.pth
    python tools/train.py CONFIG --cfg-options model.backbone.init_cfg.type=Pretrained \
        model.backbone.init_cfg.checkpoint=kdna_r18.pth

A checkpoint of a whole detector or segmenter (entries under 'backbone.', a neck, heads) becomes one too: its backbone is
converted, everything else goes over as it is. It loads into the config of that detector:

    python tools/convert_checkpoint.py odconv faster_rcnn_odconv4x_r50.pth detector.pth
    python tools/test.py CONFIG_OF_THAT_DETECTOR detector.pth
"""

import argparse
import os
from functools import partial

import _before_imports  # noqa: F401  (before torch)
import torch

from mmkerneldna.checkpoints import convert_dcd, convert_fdconv, convert_kernelwarehouse, convert_odconv, convert_official
from mmkerneldna.checkpoints.loading import CheckpointError, read_checkpoint
from mmkerneldna.errors import one_line_errors
from mmkerneldna.launch.arguments import add_unsafe_argument, add_verbose_argument

CONVERTERS = {
    'kdna-resnet18': partial(convert_official, arch='resnet18'),
    'kdna-resnet50': partial(convert_official, arch='resnet50'),
    'kdna-mobilenet-v2': partial(convert_official, arch='mobilenet_v2'),
    'kdna-mobilenet-v2-0.5': partial(convert_official, arch='mobilenet_v2_0.5'),
    'dcd': convert_dcd,
    'fdconv': convert_fdconv,
    'odconv': convert_odconv,
    'kernelwarehouse': convert_kernelwarehouse,
}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('net', choices=CONVERTERS, help='what the checkpoint holds')
    parser.add_argument('source', help='released checkpoint')
    parser.add_argument('target', help='file to write')
    add_unsafe_argument(parser)
    add_verbose_argument(parser)
    return parser.parse_args()


def main():
    args = parse_args()
    with one_line_errors():
        if os.path.exists(args.target):
            raise CheckpointError(f'{args.target} exists; name a new file')
        if not os.path.isdir(os.path.dirname(args.target) or '.'):
            raise CheckpointError(f'folder {os.path.dirname(args.target)} does not exist; make it, or name a file elsewhere')
        held = read_checkpoint(args.source, unsafe=args.unsafe_checkpoint)
        try:
            converted = CONVERTERS[args.net](held)
        except ValueError as error:
            raise CheckpointError(f'{args.source}: {error}') from error
        torch.save(dict(state_dict=converted), args.target)
    print(f'{args.target}: {len(converted)} entries')


if __name__ == '__main__':
    main()

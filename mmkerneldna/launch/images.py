"""Unlabelled images for the tools that look at what a net computes: their flags, and the batches that these ask for."""

import argparse
from collections.abc import Iterable

from mmengine.config import Config
from torch import Tensor, nn

from ..derive.images import DatasetImages, FolderImages
from .arguments import number, seed


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """``--images DIR`` or ``--data``, ``--batch``, ``--size`` and ``--seed``."""
    images = parser.add_mutually_exclusive_group()
    images.add_argument('--images', metavar='DIR', help='a folder of images, without labels')
    images.add_argument('--data', action='store_true', help="the config's training set; its labels are not used")
    parser.add_argument(
        '--batch', type=number(1), help="images per batch (default: 8 of a folder, the data loader's with --data)"
    )
    parser.add_argument(
        '--size', type=number(1), nargs=2, default=(224, 224), metavar=('H', 'W'), help='of the crops of --images'
    )
    parser.add_argument('--seed', type=seed, default=0)


def find_images(args: argparse.Namespace, cfg: Config, model: nn.Module) -> Iterable[Tensor] | None:
    """Endless batches of the images of the command line, as the model takes them; None where it names none.

    Raises:
        DeriveError: a folder without images, or a config without a training set.
    """
    if args.images:
        return FolderImages(args.images, model, tuple(args.size), args.batch or 8, args.seed)
    return DatasetImages(cfg, model, args.batch, args.seed) if args.data else None

"""A trained model that looks at pictures, one after the other, while its decisions are recorded."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch import Tensor

from ..anatomy import unwrap
from ..checkpoints.loading import install_safe_loading
from .arguments import add_device_argument, add_unsafe_argument, add_verbose_argument
from .config import make_folder
from .inference import Predictor, find_pictures, output_names
from .routing_record import Seen, record_routing


def add_look_arguments(parser: argparse.ArgumentParser) -> None:
    """Of a tool that shows what a model decides on pictures."""
    parser.add_argument('checkpoint', help='its weights')
    parser.add_argument('images', nargs='+', metavar='IMAGE', help='pictures, and folders of pictures')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='where text and pictures go')
    add_device_argument(parser)
    add_unsafe_argument(parser)
    add_verbose_argument(parser)


class Look:
    """Iterates over the name of each picture, the picture (H, W, 3) in RGB, and what was decided on it.

    Args:
        args: with a config and :func:`add_look_arguments`.
        tool (str): its name, for messages.
    """

    def __init__(self, args: argparse.Namespace, tool: str) -> None:
        sources = find_pictures(args.images, tool)
        install_safe_loading(args.unsafe_checkpoint)
        make_folder(args.out, '--out')
        self.out = args.out
        self.predictor = Predictor(args.config, args.checkpoint, args.device)
        self.model: Any = unwrap(self.predictor.inferencer.model)
        self._sources = [(name, source) for source, name in output_names(sources)]

    def _frames(self) -> Iterator[tuple[str, np.ndarray]]:
        return ((name, next(source.frames())) for name, source in self._sources)

    def __iter__(self) -> Iterator[tuple[str, np.ndarray, Seen]]:
        for name, frame in self._frames():
            with record_routing(self.model) as record:
                self.predictor(frame)
                seen = record.last()
            yield name, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), seen

    def inputs(self) -> list[Tensor]:
        """The batches that the backbone sees of the pictures."""
        seen: list[Tensor] = []
        hook = self.model.data_preprocessor.register_forward_hook(lambda m, args, output: seen.append(output['inputs']))
        for _, frame in self._frames():
            self.predictor(frame)
        hook.remove()
        return seen

    def save(self, folder: str, name: str, picture: np.ndarray | None) -> None:
        """Write a picture, if there is one, to ``DIR/folder/name.png``."""
        if picture is not None:
            (self.out / folder).mkdir(exist_ok=True)
            cv2.imwrite(str(self.out / folder / f'{name}.png'), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))


def shares(numbers: Tensor, count: int) -> list[float]:
    """Part of the images or positions that each of ``count`` experts, or leaves, got."""
    return (numbers.flatten().bincount(minlength=count).double() / numbers.numel()).tolist()

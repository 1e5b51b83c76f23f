"""Generate the shapes data set that configs/shapes/ train on, or keep the one that is there.

    python tools/make_shapes.py
    python tools/make_shapes.py --data-root DIR     # then --cfg-options data_root=DIR for the other tools
    python tools/make_shapes.py --scale 0.25 --data-root data/shapes_small      # small objects only

400 images of 160 to 256 pixels a side, some seconds, 10 MB. The same images on every machine.
"""

import argparse
from pathlib import Path

import _before_imports  # noqa: F401  (before torch)
from rich.console import Console
from rich.progress import track

from mmkerneldna.datasets import ShapesSpec, describe_shapes, generate_shapes
from mmkerneldna.errors import one_line_errors
from mmkerneldna.launch.arguments import add_verbose_argument

console = Console()


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data-root', type=Path, default=Path('data/shapes'), help='where the shapes are, or go')
    parser.add_argument('--scale', type=float, default=1.0, help='of the shapes, in (0, 1]')
    add_verbose_argument(parser)
    return parser.parse_args()


def main():
    args = parse_args()
    root = args.data_root
    spec = ShapesSpec(scale=args.scale)
    generate_shapes(root, spec, track=lambda images, description: track(images, description, console=console))
    for split, counts in describe_shapes(root).items():
        console.print(f'{split}: ' + ', '.join(f'{count} {name}' for name, count in counts.items()), highlight=False)
    console.print(f'the data set lies in {root}', highlight=False, soft_wrap=True)


if __name__ == '__main__':
    try:
        with one_line_errors():
            main()
    except KeyboardInterrupt:
        raise SystemExit('stopped; nothing was kept, the same command starts anew') from None

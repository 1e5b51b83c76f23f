"""What the decision trees of a trained model ask, and where images or positions go.

    python tools/show_trees.py CONFIG CHECKPOINT photo.jpg photos/ --out out

DIR gets trees.txt (each TreeRouter as text, with the share of all images or positions in each leaf), leaves.json (per picture
the shares of the leaves of each tree) and leaves/NAME.png: of trees over positions, the picture in the colours of the leaves.
"""

import argparse
from pathlib import Path

import _before_imports  # noqa: F401  (before torch)
import cv2
import torch

from mmkerneldna import launch
from mmkerneldna.anatomy import unwrap
from mmkerneldna.checkpoints.loading import install_safe_loading
from mmkerneldna.errors import UsageError, one_line_errors
from mmkerneldna.launch.arguments import add_device_argument, add_unsafe_argument, add_verbose_argument
from mmkerneldna.launch.inference import Predictor, find_pictures, output_names
from mmkerneldna.launch.leaf_pictures import paint_leaves
from mmkerneldna.launch.panels import side_by_side
from mmkerneldna.launch.quiet import quiet_output
from mmkerneldna.measure.tables import write_json
from mmkerneldna.routing import PositionFFN2d, PositionMoE2d, record_leaves


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help="of a model with gate=dict(type='TreeRouter')")
    parser.add_argument('checkpoint', help='its weights')
    parser.add_argument('images', nargs='+', metavar='IMAGE', help='pictures, and folders of pictures')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='where text and pictures go')
    add_device_argument(parser)
    add_unsafe_argument(parser)
    add_verbose_argument(parser)
    return parser.parse_args()


class MapSizes(dict):
    """{path of a tree: H, W of the map whose positions it routes}, of the last call."""

    def __init__(self, model):
        super().__init__()
        for path, layer in model.named_modules():
            if isinstance(layer, (PositionMoE2d, PositionFFN2d)):
                layer.register_forward_hook(lambda m, args, y, path=path: self.__setitem__(f'{path}.gate', tuple(y.shape[2:])))


def shares(leaves, count):
    """Part of the inputs in each leaf."""
    return (torch.bincount(leaves, minlength=count).double() / len(leaves)).tolist()


def picture_of(frame, last, sizes):
    """The trees over positions side by side; None if there are none."""
    shown = {path: leaves for path, leaves in last.items() if path in sizes}
    if not shown:
        return None
    rgb = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    # test-time augmentation and tiles call a layer with several images: the last one is shown
    panels = [paint_leaves(rgb, leaves[-sizes[path][0] * sizes[path][1] :], sizes[path]) for path, leaves in shown.items()]
    return side_by_side(panels, [[path.removesuffix('.gate')] for path in shown])


def main():
    args = parse_args()
    with one_line_errors():
        sources = find_pictures(args.images, 'show_trees')
        install_safe_loading(args.unsafe_checkpoint)
        launch.make_folder(args.out / 'leaves', '--out')
        with quiet_output():
            predictor = Predictor(args.config, args.checkpoint, args.device)
            model = unwrap(predictor.inferencer.model)
            sizes, rows, every = MapSizes(model), [], {}
            with record_leaves(model) as trees:
                if not trees:
                    raise UsageError(f"{args.config} has no tree: give a layer of experts gate=dict(type='TreeRouter')")
                for source, name in output_names(sources):
                    frame = next(source.frames())
                    predictor(frame)
                    last = {path: tree.seen[-1] for path, tree in trees.items() if tree.seen}
                    for path, leaves in last.items():
                        every.setdefault(path, []).append(leaves)
                        trees[path].seen.clear()
                    rows.append(dict(image=name, leaves={p: shares(v, trees[p].num_experts) for p, v in last.items()}))
                    picture = picture_of(frame, last, sizes)
                    if picture is not None:
                        cv2.imwrite(str(args.out / 'leaves' / f'{name}.png'), picture[..., ::-1])
            text = '\n\n'.join(f'{path}\n{trees[path].describe(torch.cat(found))}' for path, found in every.items())
            (args.out / 'trees.txt').write_text(text + '\n')
            write_json(args.out / 'leaves.json', dict(images=rows))
    print(text)
    print(f'wrote {args.out}')


if __name__ == '__main__':
    main()

"""What a trained model with gates computes of each image: the kept parts over the picture, and which blocks were called.

    python tools/show_routing.py CONFIG CHECKPOINT photo.jpg photos/ --out out --keep .5

DIR gets masks/NAME.png (gates that decide per position: what is not computed is dark), blocks.png (gates that decide per
image: a line per image, a column per block) and routing.json (what each gate kept of each image). With --keep the thresholds
are set on these images; without it they are as the checkpoint has them.
"""

import argparse
from pathlib import Path

import _before_imports  # noqa: F401  (before torch)
import cv2

from mmkerneldna import launch
from mmkerneldna.anatomy import unwrap
from mmkerneldna.checkpoints.loading import install_safe_loading
from mmkerneldna.errors import UsageError, one_line_errors
from mmkerneldna.launch.arguments import add_device_argument, add_unsafe_argument, add_verbose_argument
from mmkerneldna.launch.inference import Predictor, find_pictures, output_names
from mmkerneldna.launch.quiet import quiet_output
from mmkerneldna.launch.routing_pictures import MapSizes, block_figure, last_decisions, paint_masks, short_name
from mmkerneldna.measure.tables import write_json
from mmkerneldna.routing import decisions, keep_gates, set_keep


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='of a model with SkipBlocks or SparseBlocks')
    parser.add_argument('checkpoint', help='its weights')
    parser.add_argument('images', nargs='+', metavar='IMAGE', help='pictures, and folders of pictures')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='where pictures and routing.json go')
    parser.add_argument('--keep', type=float, help='the part to compute, in (0, 1], set on these images')
    add_unsafe_argument(parser)
    add_device_argument(parser)
    add_verbose_argument(parser)
    return parser.parse_args()


def inputs_of(predictor, frames):
    """The batches that the backbone sees of the frames."""
    seen = []
    hook = unwrap(predictor.inferencer.model).data_preprocessor.register_forward_hook(
        lambda module, args, output: seen.append(output['inputs'])
    )
    for frame in frames:
        predictor(frame)
    hook.remove()
    return seen


def main():
    args = parse_args()
    with one_line_errors():
        sources = find_pictures(args.images, 'show_routing')
        install_safe_loading(args.unsafe_checkpoint)
        launch.make_folder(args.out / 'masks', '--out')
        with quiet_output():
            predictor = Predictor(args.config, args.checkpoint, args.device)
            model = unwrap(predictor.inferencer.model)
            gates = keep_gates(model)
            if not gates:
                raise UsageError(f'{args.config} has no gates: give it a backbone of type SkipBlocks or SparseBlocks')
            frames = [next(source.frames()) for source in sources]
            if args.keep is not None:
                set_keep(model, args.keep, inputs_of(predictor, frames))
            names, shown, rows = [name for _, name in output_names(sources)], [], []
            for name, frame in zip(names, frames):
                with decisions(model) as seen, MapSizes(model) as sizes:
                    predictor(frame)
                    shown.append(last_decisions(seen, sizes))
                kept = {short_name(path): mask.float().mean().item() for path, mask in shown[-1].masks.items()}
                rows.append(dict(image=name, kept=kept))
                picture = paint_masks(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), shown[-1], gates)
                if picture is not None:
                    cv2.imwrite(str(args.out / 'masks' / f'{name}.png'), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
            figure = block_figure(names, shown, gates)
            if figure is not None:
                figure.savefig(args.out / 'blocks.png', dpi=130)
            write_json(args.out / 'routing.json', dict(images=rows))
    for row in rows:
        print(f'{row["image"]}: {", ".join(f"{gate} {kept:.0%}" for gate, kept in row["kept"].items())}')
    print(f'wrote {args.out}')


if __name__ == '__main__':
    main()

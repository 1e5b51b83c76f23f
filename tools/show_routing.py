"""What a trained model computes of each image: kept parts over the picture, experts of its positions, blocks that were called.

    python tools/show_routing.py CONFIG CHECKPOINT photo.jpg photos/ --out out --keep .5

DIR gets masks/NAME.png (gates over tiles or positions, and where a head queries its finest level: what is not computed is
dark), experts/NAME.png (each position in the colour of its expert, or of its leaf where a tree chooses), blocks.png (gates
that decide per image: a line per image, a column per block) and routing.json (what each gate kept of each image, and the
share of each expert). With --keep the thresholds are set on these images; without it they are as the checkpoint has them.
"""

import argparse

import _before_imports  # noqa: F401  (before torch)

from mmkerneldna.errors import UsageError, one_line_errors
from mmkerneldna.launch.look import Look, add_look_arguments, shares
from mmkerneldna.launch.quiet import quiet_output
from mmkerneldna.launch.routing_pictures import block_figure, paint_experts, paint_masks, short_name
from mmkerneldna.launch.routing_record import expert_layers, without_pictures
from mmkerneldna.measure.tables import write_json
from mmkerneldna.routing import keep_gates, set_keep


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='of a model with gates (SkipBlocks, SparseBlocks, SparseQuery heads), trees or experts')
    add_look_arguments(parser)
    parser.add_argument('--keep', type=float, help='the part to compute, in (0, 1], set on these images')
    return parser.parse_args()


def check_decides(model, config):
    """Refuse a model that computes the same of every image."""
    if not keep_gates(model) and not expert_layers(model):
        raise UsageError(
            f'{config} decides nothing per image: give it a backbone of type SkipBlocks or SparseBlocks, a head that queries, '
            'or layers of experts'
        )


def show(look):
    """Write everything; returns the rows of routing.json."""
    experts, names, every, rows = expert_layers(look.model), [], [], []
    for name, picture, seen in look:
        look.save('masks', name, paint_masks(picture, seen))
        look.save('experts', name, paint_experts(picture, seen))
        kept = {short_name(path): mask.float().mean().item() for path, mask in seen.masks.items()}
        parts = {path: shares(numbers, experts[path].num_experts) for path, numbers in seen.numbers.items()}
        rows.append(dict(image=name, kept=kept, experts=parts))
        names.append(name)
        every.append(seen)
    figure = block_figure(names, every)
    if figure is not None:
        figure.savefig(look.out / 'blocks.png', dpi=130)
    write_json(look.out / 'routing.json', dict(images=rows))
    return rows


def line_of(row):
    kept = [f'{gate} {part:.0%}' for gate, part in row['kept'].items()]
    experts = [f'{path} {"/".join(f"{100 * part:.0f}" for part in parts)} %' for path, parts in row['experts'].items()]
    return f'{row["image"]}: {", ".join(kept + experts)}'


def main():
    args = parse_args()
    with one_line_errors():
        with quiet_output():
            look = Look(args, 'show_routing')
            check_decides(look.model, args.config)
            if args.keep is not None:
                set_keep(look.model, args.keep, look.inputs())
            rows = show(look)
        print(*map(line_of, rows), sep='\n')
        if without_pictures(look.model):
            print(f'no pictures of the regions that attention looks at: {", ".join(without_pictures(look.model))}')
        print(f'wrote {args.out}')


if __name__ == '__main__':
    main()

"""What the decision trees of a trained model ask, and where images or positions go.

    python tools/show_trees.py CONFIG CHECKPOINT photo.jpg photos/ --out out

DIR gets trees.txt (each TreeRouter as text, with the share of all images or positions in each leaf), leaves.json (per picture
the shares of the leaves of each tree) and leaves/NAME.png: of trees over positions, the picture in the colours of the leaves.
"""

import argparse
from dataclasses import replace

import _before_imports  # noqa: F401  (before torch)
import torch

from mmkerneldna.errors import UsageError, one_line_errors
from mmkerneldna.launch.look import Look, add_look_arguments, shares
from mmkerneldna.launch.quiet import quiet_output
from mmkerneldna.launch.routing_pictures import paint_experts
from mmkerneldna.launch.routing_record import expert_layers
from mmkerneldna.measure.tables import write_json


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help="of a model with gate=dict(type='TreeRouter')")
    add_look_arguments(parser)
    return parser.parse_args()


def show(look, trees):
    """Write everything; returns the trees as text."""
    rows, every = [], {path: [] for path in trees}
    for name, picture, seen in look:
        leaves = {path: numbers for path, numbers in seen.numbers.items() if path in trees}
        for path, numbers in leaves.items():
            every[path].append(numbers.flatten())
        rows.append(dict(image=name, leaves={f'{p}.gate': shares(v, trees[p].num_experts) for p, v in leaves.items()}))
        look.save('leaves', name, paint_experts(picture, replace(seen, numbers=leaves)))
    text = '\n\n'.join(f'{path}.gate\n{trees[path].describe(torch.cat(found))}' for path, found in every.items() if found)
    (look.out / 'trees.txt').write_text(text + '\n')
    write_json(look.out / 'leaves.json', dict(images=rows))
    return text


def main():
    args = parse_args()
    with one_line_errors():
        with quiet_output():
            look = Look(args, 'show_trees')
            trees = {path: layer.gate for path, layer in expert_layers(look.model).items() if layer.is_tree}
            if not trees:
                raise UsageError(f"{args.config} has no tree: give a layer of experts gate=dict(type='TreeRouter')")
            text = show(look, trees)
        print(text)
        print(f'wrote {args.out}')


if __name__ == '__main__':
    main()

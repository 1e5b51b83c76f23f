"""Give a model with shared kernels or dynamic layers the weights of its dense net: halve its parameters without labels.

    python tools/derive.py configs/fcn/fcn_kdna-r18-d8_4xb4-160k_ade20k-512x512.py --from static.pth --out derived.pth
    python tools/derive.py STATIC_CONFIG --from static.pth --data --steps 60 --out derived.pth \
        --plan layer3.0.conv2=layer3.1.conv2,layer3.1.conv1=layer3.1.conv2
    python tools/derive.py STATIC_CONFIG --from static.pth --data --out derived.pth --plan redundancy:0.5
    python tools/derive.py STATIC_CONFIG --from static.pth --images photos --out derived.pth --variant odconv4x

Weights alone take seconds. Unlabelled images (--images a folder, --data the config's training set) bring norms and branches
back to size, and --steps of reconstruction teach the changed blocks what the dense ones put out. --plan redundancy:0.5 picks,
from the weights and the images, the parents and children of least predicted damage that leave half the backbone's parameters;
FILE.py then holds the plan that came out. --variant makes the static config a variant: kdna, or a rival, whose layers start as
the static convolutions. Beside FILE.pth lie FILE.py, the config that train.py and test.py take with it, and
the report: FILE.txt, FILE.json and FILE.png.
"""

import argparse
from pathlib import Path

import _before_imports  # noqa: F401  (before torch)
import torch

from mmkerneldna import launch
from mmkerneldna.anatomy import backbone_of
from mmkerneldna.checkpoints.loading import install_safe_loading
from mmkerneldna.checkpoints.remote import fetch
from mmkerneldna.derive import Reconstruction, derive
from mmkerneldna.derive.outputs import check_out, write_outputs
from mmkerneldna.errors import one_line_errors
from mmkerneldna.launch.arguments import (
    add_cfg_options_argument,
    add_device_argument,
    add_unsafe_argument,
    add_variant_argument,
    add_verbose_argument,
    number,
)
from mmkerneldna.launch.images import add_image_arguments, find_images
from mmkerneldna.launch.quiet import quiet_output
from mmkerneldna.launch.sharing import parse_plan, set_sharing, without_sharing
from mmkerneldna.measure.benchmark import build_from_config
from mmkerneldna.sharing import resolve_plan


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'config', help='of the model with shared kernels or dynamic layers, or with --plan or --variant a static one'
    )
    parser.add_argument(
        '--from',
        dest='source',
        required=True,
        metavar='CHECKPOINT',
        help='dense weights: a file, torchvision://..., open-mmlab://... or an address',
    )
    parser.add_argument('--out', type=Path, required=True, metavar='FILE.pth', help='where the derived checkpoint goes')
    add_image_arguments(parser)
    parser.add_argument('--steps', type=number(0), default=0, help='of reconstruction, a batch each (default: 0)')
    parser.add_argument(
        '--plan',
        help='another plan for the backbone: a name, redundancy:BUDGET (the part of the parameters '
        'to keep), child=parent,... pairs, JSON or a .json file',
    )
    add_variant_argument(parser)
    parser.add_argument('--residual-rank', type=number(0), help="rank of the children's low-rank residuals")
    parser.add_argument(
        '--parents',
        choices=['keep', 'mean'],
        default='keep',
        help='parents keep their kernels, or each family shares the mean of its kernels',
    )
    parser.add_argument('--lr', type=number(0, whole=False), default=Reconstruction.lr, help='of the reconstruction')
    parser.add_argument('--amp', action='store_true', help='reconstruct in bf16')
    parser.add_argument('--resume', action='store_true', help='go on with a reconstruction that was stopped')
    add_device_argument(parser)
    parser.add_argument('--partial', action='store_true', help='accept a checkpoint that lacks a head, or has another one')
    add_unsafe_argument(parser)
    add_cfg_options_argument(parser)
    add_verbose_argument(parser)
    return parser.parse_args()


def find_plan(args, cfg, checkpoint):
    """The plan of the command line, None for the config's; a policy that looks at trained weights is given them."""
    plan = parse_plan(args.plan) if args.plan else None
    if not isinstance(plan, dict) or plan.get('type') != 'redundancy':
        return plan
    static = build_from_config(without_sharing(cfg)).to(args.device)
    given = {} if args.residual_rank is None else dict(residual_rank=args.residual_rank)
    policy = {**given, 'checkpoint': checkpoint, 'images': find_images(args, cfg, static), **plan}
    return resolve_plan(backbone_of(static), policy).to_mapping()


def settings(args, output) -> Reconstruction:
    """Of the reconstruction; its state lies beside the checkpoint until it is done, and where it goes on is always said."""
    state = args.out.with_suffix('.state')
    if not args.resume:
        state.unlink(missing_ok=True)
    options = dict(say=lambda line: output.display.say(f'  {line}')) if output else {}
    if args.resume and not state.exists():
        options.get('say', print)(f'nothing to go on with, {state} does not exist: starting anew')
    return Reconstruction(
        max(args.steps, 1), args.lr, seed=args.seed, amp=args.amp, state_file=str(state), progress=True, **options
    )


def derive_and_write(args, output):
    """The report, and what was written."""
    install_safe_loading(args.unsafe_checkpoint)
    check_out(args.out)
    cfg = launch.load_config(args.config, args.cfg_options, variant=args.variant)
    launch.unsync_batch_norm(cfg)
    checkpoint = fetch(args.source)
    set_sharing(cfg, find_plan(args, cfg, checkpoint), args.residual_rank)
    torch.manual_seed(args.seed)
    model = build_from_config(cfg).to(args.device)
    reconstruction = settings(args, output)
    report = derive(
        model,
        checkpoint,
        find_images(args, cfg, model),
        steps=args.steps,
        parents=args.parents,
        reconstruction=reconstruction,
        partial=args.partial,
    )
    written = write_outputs(args.out, model, cfg, report, args.source, checkpoint.get('meta') or {})
    Path(reconstruction.state_file).unlink(missing_ok=True)
    return report, written


def main():
    args = parse_args()
    with one_line_errors():
        with quiet_output() as output:
            report, written = derive_and_write(args, output)
        print(report)
        for path in written:
            print(f'wrote {path}')


if __name__ == '__main__':
    main()

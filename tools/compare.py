"""Train variants of a config over seeds, test them, measure them: one table with mean and spread, and a plot.

    python tools/compare.py configs/shapes/upernet_r18_shapes.py configs/shapes/upernet_kdna-r18_shapes.py \\
        --seeds 0 1 2 --work-dir work_dirs/compare
    python tools/compare.py mmdet::retinanet/retinanet_r18_fpn_1x_coco.py --variants static kdna odconv4x
    python tools/compare.py base.py --variant kdna=b.py --variant 'odconv:backbone.conv_cfg.type=ODConv2d' --seeds 0 1
    python tools/compare.py base.py --variant kdna=b.py --max-epochs 3

The first config is the base: --variant NAME:key=value changes it, and gains and ratios refer to it. Stopped and started
again, the same command goes on where it was: finished runs are not run again, a half-trained one is resumed. The score
is that of the last checkpoint on the test set. Latency is measured at the end, all variants in this process in turns.
"""

import argparse
import signal
from pathlib import Path

import _before_imports  # noqa: F401  (before torch)

from mmkerneldna import launch
from mmkerneldna.errors import one_line_errors
from mmkerneldna.launch.arguments import (
    add_device_argument,
    add_length_arguments,
    add_verbose_argument,
    image_size,
    number,
    seed,
)
from mmkerneldna.launch.quiet import quiet_output
from mmkerneldna.measure.environment import describe, environment
from mmkerneldna.measure.input_size import size_from_config
from mmkerneldna.measure.tables import wide_console
from mmkerneldna.measure.workload import Workload
from mmkerneldna.runs.comparison import parse_variant, variant_rows
from mmkerneldna.runs.report import make_report, show_report, write_report
from mmkerneldna.runs.side_by_side import measure, with_cost
from mmkerneldna.runs.study import Study
from mmkerneldna.variants import VARIANTS

TOOLS = Path(__file__).resolve().parent
console = wide_console()


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='+', metavar='[NAME=]CONFIG', help='the base, and others to compare it with')
    parser.add_argument(
        '--variant',
        action='append',
        default=[],
        metavar='NAME:KEY=VALUE...',
        help='the base with changes, or NAME=CONFIG; may be given several times',
    )
    parser.add_argument(
        '--variants',
        nargs='+',
        default=[],
        choices=VARIANTS,
        metavar='NAME',
        help=f'the base as variants of the table, the first to compare with: {", ".join(VARIANTS)}',
    )
    parser.add_argument('--seeds', type=seed, nargs='+', default=[0])
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/compare'))
    parser.add_argument('--amp', action='store_true', help='train in mixed precision')
    parser.add_argument('--deterministic', action='store_true', help='train with deterministic algorithms')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='changes to every variant')
    parser.add_argument('--size', type=image_size, metavar='N|HxW', help='for latency (default: what the base states)')
    parser.add_argument('--batch', type=number(1), default=1, help='images per call for latency')
    parser.add_argument('--repeats', type=number(1), default=20, help='timed rounds')
    add_device_argument(parser, help='for latency')
    add_length_arguments(parser)
    add_verbose_argument(parser)
    return parser.parse_args()


def read_study(args):
    base = parse_variant(args.configs[0], '').config
    configs = args.configs[1:] if args.variants else args.configs  # the first of the variants stands for the base
    variants = [parse_variant(text, base) for text in [*args.variants, *configs, *args.variant]]
    flags = [flag for flag, wanted in (('--amp', args.amp), ('--deterministic', args.deterministic)) if wanted]
    return Study(
        variants,
        args.work_dir,
        TOOLS,
        args.seeds,
        args.cfg_options,
        flags,
        dict(max_epochs=args.max_epochs, max_iters=args.max_iters),
    )


def run_all(study, runs):
    rows = []
    for position, run in enumerate(runs, 1):
        console.print(f'{position} of {len(runs)}: {run.title}{", finished before" if run.finished else ""}', highlight=False)
        rows.append(study.run(run, console))
    return rows


def read_workload(args, cfg):
    return Workload(args.batch, args.size or size_from_config(cfg) or (224, 224), args.device)


def main():
    args = parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as ctrl-C: the training stops too
    try:
        with one_line_errors():
            study = read_study(args)
            launch.make_folder(args.work_dir, '--work-dir')
            runs, configs = study.plan()
            rows = run_all(study, runs)
            console.print('cost of all variants, in turns')
            workload = read_workload(args, next(iter(configs.values())))
            with quiet_output():
                costs = measure(configs, runs, workload, args.repeats, args.work_dir)
    except KeyboardInterrupt:
        raise SystemExit('stopped; the same command goes on where it was') from None
    facts = [
        f'mean ± standard deviation over seeds {", ".join(map(str, args.seeds))}; gain and x first: over '
        f'{study.variants[0].name}; score: last checkpoint',
        describe(environment(args.device)),
    ]
    report = make_report(with_cost(variant_rows(rows, study.variants), costs), 'Comparison', facts)
    paths = write_report(report, args.work_dir)
    show_report(report, console)
    for path in paths.values():
        console.print(str(path), highlight=False)
    if any(row['score'] is None for row in rows):
        raise SystemExit(1)


if __name__ == '__main__':
    main()

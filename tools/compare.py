"""Train variants of a config over seeds, test them, measure them: one table with mean and spread, and a plot.

    python tools/compare.py configs/shapes/upernet_r18_shapes.py configs/shapes/upernet_kdna-r18_shapes.py \\
        --seeds 0 1 2 --work-dir work_dirs/compare
    python tools/compare.py mmdet::retinanet/retinanet_r18_fpn_1x_coco.py --variants static kdna odconv4x
    python tools/compare.py base.py --variant kdna=b.py --variant 'odconv:backbone.conv_cfg.type=ODConv2d' --seeds 0 1

The first config is the base: --variant NAME:key=value changes it, and gains and ratios refer to it. Stopped and started
again, the same command goes on where it was: finished runs are not run again, a half-trained one is resumed. The score
is that of the last checkpoint on the test set. Latency is measured at the end, all variants in this process in turns.
"""
import argparse
import signal
from pathlib import Path

from mmengine.config import DictAction

from mmkerneldna.checkpoints.loading import read_checkpoint
from mmkerneldna import launch
from mmkerneldna.launch.arguments import add_device_argument, image_size, number, seed
from mmkerneldna.errors import UsageError, one_line_errors
from mmkerneldna.measure.benchmark import COST_COLUMNS, Benchmark, Subject, build_from_config
from mmkerneldna.runs.comparison import Run, Variant, execute, parse_variant, recipe_of, variant_rows
from mmkerneldna.measure.environment import describe, environment
from mmkerneldna.measure.input_size import size_from_config
from mmkerneldna.runs.report import make_report, terminal_columns, write_report
from mmkerneldna.measure.tables import rich_table, wide_console, write_json
from mmkerneldna.measure.workload import Workload
from mmkerneldna.variants import VARIANTS

console = wide_console()


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='+', metavar='[NAME=]CONFIG', help='the base, and others to compare it with')
    parser.add_argument('--variant', action='append', default=[], metavar='NAME:KEY=VALUE...',
                        help='the base with changes, or NAME=CONFIG; may be given several times')
    parser.add_argument('--variants', nargs='+', default=[], choices=VARIANTS, metavar='NAME',
                        help=f'the base as variants of the table, the first to compare with: {", ".join(VARIANTS)}')
    parser.add_argument('--seeds', type=seed, nargs='+', default=[0])
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/compare'))
    parser.add_argument('--amp', action='store_true', help='train in mixed precision')
    parser.add_argument('--deterministic', action='store_true', help='train with deterministic algorithms')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='changes to every variant')
    parser.add_argument('--size', type=image_size, metavar='N|HxW', help='for latency (default: what the base states)')
    parser.add_argument('--batch', type=number(1), default=1, help='images per call for latency')
    parser.add_argument('--repeats', type=number(1), default=20, help='timed rounds')
    add_device_argument(parser, help='for latency')
    return parser.parse_args()


def read_variants(args):
    base = parse_variant(args.configs[0], '').config
    configs = args.configs[1:] if args.variants else args.configs  # the first of the variants stands for the base
    variants = [parse_variant(text, base) for text in [*args.variants, *configs, *args.variant]]
    names = [variant.name for variant in variants]
    if len(set(names)) < len(names):
        raise UsageError(f'two variants have one name ({", ".join(names)}); write NAME=CONFIG')
    return variants


def resolved(variant: Variant, args):
    """The config of a variant with all its changes."""
    return launch.load_config(variant.config, _as_dict([*variant.options, *args.cfg_options]), variant=variant.swap)


def _as_dict(options):
    """KEY=VALUE as argparse and mmengine read them for the other tools."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--options', nargs='+', action=DictAction, default={})
    return parser.parse_args(['--options', *options] if options else []).options


def train_flags(args):
    return [flag for flag, wanted in (('--amp', args.amp), ('--deterministic', args.deterministic)) if wanted]


def plan_runs(variants, args):
    """All runs, seed by seed, so that a comparison that is stopped early has as many whole seeds as possible."""
    configs = {variant.name: resolved(variant, args) for variant in variants}
    runs = [Run(variant, seed, args.work_dir / variant.name / f'seed_{seed}',
                recipe_of(configs[variant.name], seed, train_flags(args)), (*variant.options, *args.cfg_options))
            for seed in dict.fromkeys(args.seeds) for variant in variants]
    for run in runs:
        run.claim()
    return runs, configs


def run_all(runs, args):
    rows = []
    for position, run in enumerate(runs, 1):
        console.print(f'{position} of {len(runs)}: {run.title}{", finished before" if run.finished else ""}')
        with console.status('starting') as status:
            rows.append(execute(run, train_flags(args), lambda line: _show(line, status), Path(__file__).parent))
        _say_result(rows[-1])
    return rows


def _show(line, status):
    if 'mmengine - INFO' in line and ('(train)' in line or '(val)' in line or '(test)' in line):
        status.update(line.split('INFO - ')[-1][:150].replace('[', '\\['))


def _say_result(row):
    if row['score'] is None:
        console.print(f'  {row["note"]}', style='red', markup=False)
    else:
        console.print(f'  {row["metric"]} {row["score"]:.2f} ({row["score_from"]})')


def measure(variants, configs, runs, args):
    """Cost of each variant with the weights of its first seed; of one that was never trained, why there is none."""
    size = args.size or size_from_config(configs[variants[0].name]) or (224, 224)
    workload = Workload(args.batch, size, args.device)
    first = {}
    for run in runs:
        if run.finished:
            first.setdefault(run.variant.name, run)
    subjects = [Subject(v.name, lambda v=v: trained_model(configs[v.name], first.get(v.name))) for v in variants]
    rows = Benchmark(subjects, [workload], repeats=args.repeats).run()
    write_json(args.work_dir / 'cost.json', dict(environment=environment(args.device), rows=rows))
    return {row['name']: row for row in rows}


def trained_model(cfg, run):
    if run is None:
        raise RuntimeError('no run of this variant was finished')
    launch.unsync_batch_norm(cfg)
    model = build_from_config(cfg)
    model.load_state_dict(read_checkpoint(run.checkpoint())['state_dict'])
    return model


def with_cost(rows, costs):
    """Rows with the interleaved cost in place of what each run measured by itself."""
    keys = [column.key for column in COST_COLUMNS] + ['batch', 'height', 'width', 'device', 'error']
    replaced = [{k: v for k, v in row.items() if k not in keys and k.removesuffix('_std') not in keys} for row in rows]
    return [{**row, **{key: costs.get(row['name'], {}).get(key) for key in keys}} for row in replaced]


def main():
    args = parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as ctrl-C: the training stops too
    try:
        with one_line_errors():
            variants = read_variants(args)
            launch.make_folder(args.work_dir, '--work-dir')
            runs, configs = plan_runs(variants, args)
            rows = run_all(runs, args)
            costs = measure(variants, configs, runs, args)
    except KeyboardInterrupt:
        raise SystemExit('stopped; the same command goes on where it was') from None
    facts = [f'mean ± standard deviation over seeds {", ".join(map(str, args.seeds))}; gain and x first: over '
             f'{variants[0].name}; score: last checkpoint', describe(environment(args.device))]
    report = make_report(with_cost(variant_rows(rows, variants), costs), 'Comparison', facts)
    paths = write_report(report, args.work_dir)
    for task, table in report.tables:
        console.print(rich_table(table, terminal_columns(table), task))
    for line in [*facts, *map(str, paths.values())]:
        console.print(line, highlight=False)
    if any(row['score'] is None for row in rows):
        raise SystemExit(1)


if __name__ == '__main__':
    main()

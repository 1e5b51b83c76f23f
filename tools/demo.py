"""Train a detector and a segmenter with a static and with a KernelDNA backbone on generated shapes, test, and report.

Some eight minutes on two CPU cores. Stopped by ctrl-C and started again, it goes on where it was.
"""

import argparse
import hashlib
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import _before_imports  # noqa: F401  (before torch)
from mmengine.config import Config

from mmkerneldna.datasets import chance_scores
from mmkerneldna.errors import one_line_errors
from mmkerneldna.launch.arguments import add_verbose_argument
from mmkerneldna.launch.quiet import quiet_output
from mmkerneldna.measure.environment import describe, environment
from mmkerneldna.measure.input_size import size_from_config
from mmkerneldna.measure.tables import wide_console
from mmkerneldna.measure.workload import Workload
from mmkerneldna.runs.comparison import Run, Variant, variant_rows
from mmkerneldna.runs.report import make_report, show_report, write_report
from mmkerneldna.runs.side_by_side import measure, with_cost
from mmkerneldna.runs.study import Study

ROOT = Path(__file__).resolve().parents[1]
# The first of each is what the others are compared with.
STUDIES = {
    'detection': ('faster-rcnn_r18_fpn_shapes', 'faster-rcnn_kdna-r18_fpn_shapes'),
    'segmentation': ('upernet_r18_shapes', 'upernet_kdna-r18_shapes'),
}
# Its dense weights become a KernelDNA net's, which then trains for a quarter of the steps.
DERIVED = {'segmentation': 'upernet_kdna-r18_shapes'}
console = wide_console()


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data-root', type=Path, default=Path('data/shapes'), help='where the shapes are, or go')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/demo'), help='where runs and report go')
    parser.add_argument('--only-data', action='store_true', help='generate the data set and stop')
    add_verbose_argument(parser)
    return parser.parse_args()


def run_tool(tool: str, *arguments) -> None:
    """Run one of the tools; its output passes through. Leaves when it fails: it has said why."""
    status = subprocess.run([sys.executable, str(ROOT / 'tools' / tool), *map(str, arguments)], check=False).returncode
    if status:
        raise SystemExit(f'error: tools/{tool} {arguments[0]} ended with status {status}; its message is above')


def config_of(name: str) -> Path:
    """The file of a run's config."""
    return ROOT / 'configs' / 'shapes' / f'{name}.py'


def digest_of(path: Path) -> str:
    """What tells one file from another."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def study_of(task: str, args) -> Study:
    """The runs of one task. A run of other data or another config is trained anew."""
    variants = [Variant(name, str(config_of(name))) for name in STUDIES[task]]
    return Study(
        variants,
        args.work_dir / task,
        ROOT / 'tools',
        options=[f'data_root={args.data_root}'],
        facts=dict(data=digest_of(args.data_root / 'dataset.json')),
        anew=True,
    )


def derived_study(study: Study, name: str, dense: Run, cfg: Config) -> Study:
    """One more run: derived from the checkpoint of ``dense``, a run of ``cfg``, and trained for a quarter of its steps."""
    variant = Variant(name.replace('kdna', 'derived'), str(config_of(name)), (f'load_from={dense.checkpoint()}',))
    return replace(
        study,
        variants=[variant],
        lengths=dict(max_iters=cfg.train_cfg.max_iters // 4),
        facts={**study.facts, 'dense': digest_of(Path(dense.checkpoint()))},
    )


def train(study: Study):
    """Runs, configs and rows of a task. Leaves when a run fails."""
    runs, configs = study.plan()
    rows = []
    for run in runs:
        # in a file the result follows on the same line; a live line needs one of its own
        end = '\n' if console.is_terminal else ':'
        console.print(f'{run.variant.name}{", finished before" if run.finished else ""}', highlight=False, end=end)
        rows.append(study.run(run, console))
        if rows[-1]['score'] is None:
            raise SystemExit(1)
    return runs, configs, rows


def compare(study: Study, derived: str | None):
    """Rows of a task for the table: scores of the tests, cost of all variants measured in turns."""
    runs, configs, rows = train(study)
    variants, static = list(study.variants), configs[study.variants[0].name]
    if derived:
        more = derived_study(study, derived, runs[0], static)
        extra_runs, extra_configs, extra_rows = train(more)
        runs, rows, variants = runs + extra_runs, rows + extra_rows, variants + list(more.variants)
        configs.update(extra_configs)
    with quiet_output():
        costs = measure(configs, runs, Workload(1, size_from_config(static) or (224, 224), 'cpu'), 10, study.work_dir)
    return with_cost(variant_rows(rows, variants), costs)


def compare_backbones(out_dir: Path) -> None:
    """Time the two backbones alone, taking turns."""
    static, kdna = map(config_of, STUDIES['detection'])
    run_tool(
        'benchmark.py',
        f'static={static}',
        f'kdna={kdna}',
        '--scope',
        'backbone',
        '--batch',
        1,
        8,
        '--size',
        192,
        '--repeats',
        10,
        '--out-dir',
        out_dir,
    )


def report(rows, work_dir: Path, data_root: Path) -> None:
    """Write table and plot of all runs, next to what guessing scores; the last lines say where they lie."""
    chance = chance_scores(data_root)
    facts = [
        'Latency: test_step of the trained models, batch 1, all models of a task in one process, taking turns.',
        describe(environment('cpu')),
    ]
    made = make_report(rows, 'Shapes, trained from scratch', facts)
    paths = write_report(made, work_dir / 'report')
    show_report(made, console)
    console.print(f'guessing scores box AP {100 * chance["box AP"]:.1f}, mIoU {chance["mIoU"]:.1f}', highlight=False)
    console.print(f'table: {paths["html"]} (also .md, .csv, .json)', highlight=False)
    console.print(f'plot:  {paths["png"]}', highlight=False)


def main():
    args, start = parse_args(), time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as ctrl-C: the training stops too
    run_tool('make_shapes.py', '--data-root', args.data_root)
    if args.only_data:
        return
    rows = []
    for task in STUDIES:
        console.rule(f'{task}, {(time.monotonic() - start) / 60:.1f} min so far')
        rows += compare(study_of(task, args), DERIVED.get(task))
    console.rule('backbones side by side')
    compare_backbones(args.work_dir / 'backbones')
    console.rule(f'report, {(time.monotonic() - start) / 60:.1f} min so far')
    report(rows, args.work_dir, args.data_root)


if __name__ == '__main__':
    try:
        with one_line_errors():
            main()
    except KeyboardInterrupt:
        raise SystemExit('stopped; the same command goes on from the last checkpoint') from None

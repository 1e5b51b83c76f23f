"""One table, accuracy next to cost, and an accuracy-latency plot from the work_dirs of any number of runs.

    python tools/report.py work_dirs/a work_dirs/b --out-dir work_dirs/report
    python tools/report.py work_dirs --seeds            # every run below; runs of one config become mean ± std

Writes report.html (self-contained), report.md, report.csv, report.json and pareto.png. The score of a run is its
test's, else its last validation's; the table says which. Latency is what tools/compare.py measured in turns, where it
did, else each run's own.
"""

import argparse
from pathlib import Path

import _before_imports  # noqa: F401  (before torch)

from mmkerneldna.errors import UsageError, one_line_errors
from mmkerneldna.launch import make_folder
from mmkerneldna.launch.arguments import add_verbose_argument
from mmkerneldna.measure.tables import wide_console
from mmkerneldna.runs.report import make_report, show_report, write_report
from mmkerneldna.runs.results import collect_run, group_rows
from mmkerneldna.runs.side_by_side import interleaved_cost, replace_cost
from mmkerneldna.runs.work_dir import find_runs


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('work_dirs', nargs='+', type=Path, metavar='WORK_DIR', help='of a run, or a folder above')
    parser.add_argument('--seeds', action='store_true', help='one line per config: mean and spread over its runs')
    parser.add_argument('--title', default='Accuracy and cost')
    parser.add_argument('--out-dir', type=Path, default=Path('work_dirs/report'))
    add_verbose_argument(parser)
    return parser.parse_args()


def collect(roots):
    """One row per run below the roots, each named so that it can be told from the others."""
    rows = []
    for root in roots:
        if not root.is_dir():
            raise UsageError(f'work_dir {root} {"is a file" if root.exists() else "does not exist"}: name the folder of a run')
        rows += [row_of(run, root.name if run == root else str(run.relative_to(root))) for run in find_runs(root)]
    unique = {row['work_dir']: row for row in rows}
    names = [row['name'] for row in unique.values()]
    return [{**row, 'name': row['work_dir']} if names.count(row['name']) > 1 else row for row in unique.values()]


def row_of(run, name):
    """The row of a run, with the cost measured side by side where there is one."""
    row, cost = collect_run(run, name), interleaved_cost(run)
    return {**row, 'cost_from': 'own run'} if cost is None else {**replace_cost(row, cost), 'cost_from': 'in turns'}


def main():
    args = parse_args()
    console = wide_console()
    with one_line_errors():
        rows = collect(args.work_dirs)
        make_folder(args.out_dir, '--out-dir')
        if args.seeds:
            rows = group_rows(rows, lambda row: row['config'] or row['name'])
        report = make_report(rows, args.title, _facts(rows))
        paths = write_report(report, args.out_dir)
    show_report(report, console)
    for path in paths.values():
        console.print(str(path), highlight=False)


def _facts(rows):
    devices = {row.get('device') for row in rows} - {None}
    notes = {
        'own run': 'measured by each run at the end of its evaluation.',
        'in turns': 'all variants of a comparison in one process, in turns.',
    }
    kinds = {row.get('cost_from') for row in rows}
    facts = [f'Latency: test_step at the stated batch and size, {note}' for kind, note in notes.items() if kind in kinds]
    if len(facts) > 1:
        facts.append('Careful: latencies were measured in two ways; "cost from" says which.')
    if len(devices) > 1:
        facts.append(f'Careful: latencies come from {len(devices)} different devices.')
    return facts


if __name__ == '__main__':
    main()

"""Train a detector and a segmenter with a static and with a KernelDNA backbone on generated shapes, test, and report.

Some eight minutes on two CPU cores. Stopped by ctrl-C and started again, it goes on where it was.
"""
import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from mmengine.config import Config
from rich.console import Console

from mmkerneldna.datasets import DataError, chance_scores

ROOT = Path(__file__).resolve().parents[1]
RUNS = ('faster-rcnn_r18_fpn_shapes', 'faster-rcnn_kdna-r18_fpn_shapes', 'upernet_r18_shapes',
        'upernet_kdna-r18_shapes')
console = Console()


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data-root', type=Path, default=Path('data/shapes'), help='where the shapes are, or go')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/demo'), help='where runs and report go')
    parser.add_argument('--only-data', action='store_true', help='generate the data set and stop')
    return parser.parse_args()


def run_tool(tool: str, *arguments) -> None:
    """Run one of the tools; its output passes through. Leaves when it fails: it has said why."""
    status = subprocess.run([sys.executable, str(ROOT / 'tools' / tool), *map(str, arguments)]).returncode
    if status:
        raise SystemExit(f'error: tools/{tool} {arguments[0]} ended with status {status}; its message is above')


def train_and_test(name: str, work_dir: Path, data_root: Path) -> None:
    """One config from start to score, unless that is done; an interrupted training is resumed."""
    config = ROOT / 'configs' / 'shapes' / f'{name}.py'
    state_file, digest = work_dir / 'demo.json', recipe_digest(config, data_root)
    state = json.loads(state_file.read_text()) if state_file.is_file() else {}
    if state.get('digest') not in (None, digest):
        console.print(f'{name}: config or data changed since the last time, training anew', highlight=False)
        shutil.rmtree(work_dir)
    elif state.get('finished'):
        console.print(f'{name}: done before', highlight=False)
        return
    work_dir.mkdir(parents=True, exist_ok=True)
    state_file.write_text(json.dumps(dict(digest=digest, finished=False)))
    data = ('--cfg-options', f'data_root={data_root}')
    run_tool('train.py', config, '--work-dir', work_dir, '--resume', '--seed', 0, *data)
    checkpoint = (work_dir / 'last_checkpoint').read_text().strip()
    run_tool('test.py', config, checkpoint, '--work-dir', work_dir, *data)
    state_file.write_text(json.dumps(dict(digest=digest, finished=True)))


def recipe_digest(config: Path, data_root: Path) -> str:
    """Tells whether a finished run is still what the config and the data ask for."""
    recipe = Config.fromfile(config).pretty_text + (data_root / 'dataset.json').read_text()
    return hashlib.sha256(recipe.encode()).hexdigest()


def compare_backbones(out_dir: Path) -> None:
    """Time the two backbones in one process, taking turns: each run times its own model, minutes apart."""
    static, kdna = (ROOT / 'configs' / 'shapes' / f'{name}.py' for name in RUNS[:2])
    run_tool('benchmark.py', f'static={static}', f'kdna={kdna}', '--scope', 'backbone', '--batch', 1, 8, '--size', 192,
             '--repeats', 10, '--out-dir', out_dir)


def report(work_dir: Path, data_root: Path) -> None:
    """Write table and plot of the four runs, next to what guessing scores; the last lines say where they lie."""
    chance = chance_scores(data_root)
    run_tool('report.py', *(work_dir / name for name in RUNS), '--title', 'Shapes, trained from scratch',
             '--out-dir', work_dir / 'report')
    console.print(f'guessing scores box AP {100 * chance["box AP"]:.1f}, mIoU {chance["mIoU"]:.1f}', highlight=False)
    console.print(f'table: {work_dir}/report/report.html (also .md, .csv, .json)', highlight=False)
    console.print(f'plot:  {work_dir}/report/pareto.png', highlight=False)


def main():
    args, start = parse_args(), time.monotonic()
    console.rule('shapes')
    run_tool('make_shapes.py', '--data-root', args.data_root)
    if args.only_data:
        return
    for number, name in enumerate(RUNS, 1):
        console.rule(f'{number} of {len(RUNS)}: {name}, {(time.monotonic() - start) / 60:.1f} min so far')
        train_and_test(name, args.work_dir / name, args.data_root)
    console.rule('backbones side by side')
    compare_backbones(args.work_dir / 'backbones')
    console.rule(f'report, {(time.monotonic() - start) / 60:.1f} min so far')
    report(args.work_dir, args.data_root)


if __name__ == '__main__':
    try:
        main()
    except DataError as error:
        raise SystemExit(f'error: {error}') from None
    except KeyboardInterrupt:
        raise SystemExit('stopped; the same command goes on from the last checkpoint') from None

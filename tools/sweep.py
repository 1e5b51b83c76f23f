"""One trained model with gates at several keep rates: score over measured latency, as one table and one plot.

    python tools/sweep.py CONFIG CHECKPOINT --keep 1 .75 .5 .25 --out out
    python tools/sweep.py CONFIG CHECKPOINT --static r18 A.py a.pth --static r34 B.py b.pth --out out

For each keep rate the thresholds of the gates are set on images of the training set (their labels are not used), the test set
is scored, and latency is taken over a sample of its images: batch 1, test_step, all operating points and static nets in turns.
The static nets of other depths are the line to beat. DIR gets sweep.json, sweep.md and sweep.png. GMACs are the mean of what
was run.
"""

import argparse
from copy import deepcopy
from itertools import islice
from pathlib import Path
from typing import Any

import _before_imports  # noqa: F401  (before torch)
import torch

from mmkerneldna import launch
from mmkerneldna.anatomy import unwrap
from mmkerneldna.checkpoints.loading import install_safe_loading
from mmkerneldna.deploy import deploy
from mmkerneldna.derive.images import DatasetImages
from mmkerneldna.errors import UsageError, one_line_errors
from mmkerneldna.launch.arguments import (
    add_cfg_options_argument,
    add_device_argument,
    add_unsafe_argument,
    add_verbose_argument,
    number,
)
from mmkerneldna.launch.coco_scores import use_fast_coco_scores
from mmkerneldna.launch.quiet import quiet_output
from mmkerneldna.measure.environment import describe, environment
from mmkerneldna.measure.latency import Failure
from mmkerneldna.measure.over_images import gmacs_over_images, keep_rates, time_over_images
from mmkerneldna.measure.tables import doubt_notes, rich_table, wide_console
from mmkerneldna.measure.workload import Workload, inference_call
from mmkerneldna.routing import keep_gates, set_keep
from mmkerneldna.routing.gates import check_keep
from mmkerneldna.runs.scores import SCORES, is_number
from mmkerneldna.runs.sweep import COLUMNS, write_sweep


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='of a model with SkipBlocks or SparseBlocks')
    parser.add_argument('checkpoint', help='its weights')
    parser.add_argument('--keep', type=float, nargs='+', default=[1.0, 0.75, 0.5, 0.25], help='parts to compute, in (0, 1]')
    parser.add_argument(
        '--static',
        nargs=3,
        action='append',
        default=[],
        metavar=('NAME', 'CONFIG', 'CHECKPOINT'),
        help='a static net to compare with; several go',
    )
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='where table and plot go')
    parser.add_argument('--calibration', type=number(1), default=32, help='images that the thresholds are set on')
    parser.add_argument('--images', type=number(1), default=16, help='images of the test set that are timed')
    parser.add_argument('--repeats', type=number(1), default=5, help='timed rounds')
    parser.add_argument('--no-deploy', action='store_true', help='time the models as they were trained, not deployed')
    parser.add_argument('--threads', type=number(1), help='CPU threads of torch')
    add_unsafe_argument(parser)
    add_cfg_options_argument(parser, 'all configs')
    add_device_argument(parser)
    add_verbose_argument(parser)
    return parser.parse_args()


def build(config: str, checkpoint: str, args, output):
    """A Runner with its test loop and weights; without the hooks that measure by themselves."""
    cfg = launch.load_config(config, args.cfg_options)
    cfg.load_from, cfg.resume, cfg.work_dir = checkpoint, False, str(args.out / 'runs' / Path(config).stem)
    launch.make_folder(cfg.work_dir, '--out')
    launch.unsync_batch_norm(cfg)
    use_fast_coco_scores(cfg)
    cfg.custom_hooks = [hook for hook in cfg.get('custom_hooks') or [] if hook['type'] != 'CostHook']
    launch.add_hook(cfg, dict(type='CheckpointFitHook'))
    runner = launch.build_runner(cfg, output)
    launch.build_loops(runner, 'test')
    runner.call_hook('before_run')
    runner.load_or_resume()
    return runner


def score(runner) -> tuple[str, float | None]:
    """Name and value of the score of a test."""
    metrics = runner.test_loop.run()
    found = next((s for s in SCORES if is_number(metrics.get(s.key))), None)
    return (found.title, float(metrics[found.key]) * found.scale) if found else ('score', None)


def samples(runner, count: int) -> list[dict[str, Any]]:
    """Batches of one image, spread over the test set."""
    dataset = runner.test_loop.dataloader.dataset
    count = min(count, len(dataset))
    chosen = [dataset[index * len(dataset) // count] for index in range(count)]
    return [{key: [sample[key]] for key in ('inputs', 'data_samples')} for sample in chosen]


def calls(model, batches, device: str):
    """One call per image."""
    sizes = [tuple(batch['inputs'][0].shape[-2:]) for batch in batches]
    return [inference_call(model, Workload(1, size, device), batch) for size, batch in zip(sizes, batches)]


def operating_points(runner, args, batches):
    """Rows of the swept model, and a copy of the model for each."""
    model = unwrap(runner.model)
    if not keep_gates(model):
        raise UsageError(f'{args.config} has no gates to sweep: give it a backbone of type SkipBlocks or SparseBlocks')
    feed = iter(DatasetImages(runner.cfg, model, None, 0))
    first = next(feed)
    calibration = [first, *islice(feed, -(-args.calibration // len(first)) - 1)]
    rows, models = [], {}
    for keep in args.keep:
        set_keep(model, keep, calibration)
        metric, value = score(runner)
        name = f'{Path(args.config).stem} keep {keep:g}'
        model.eval()
        with torch.no_grad():
            rates = keep_rates(model, calls(model, batches, args.device))
        rows.append(dict(name=name, keep=keep, metric=metric, score=value, **rates))
        models[name] = deepcopy(model)
    return rows, models


def static_nets(args, output):
    """Rows and models of the nets to compare with."""
    rows, models = [], {}
    for name, config, checkpoint in args.static:
        runner = build(config, checkpoint, args, output)
        metric, value = score(runner)
        rows.append(dict(name=name, keep=None, metric=metric, score=value))
        models[name] = unwrap(runner.model).eval()
    return rows, models


def add_costs(rows, models, batches, args) -> None:
    """Latency and GMACs into the rows; all models take turns."""
    ready = {name: model if args.no_deploy else deploy(model) for name, model in models.items()}
    timings = time_over_images(
        {name: calls(model, batches, args.device) for name, model in ready.items()}, args.device, args.repeats
    )
    for row in rows:
        timing = timings[row['name']]
        row['gmacs'] = gmacs_over_images(calls(models[row['name']], batches, args.device))
        if isinstance(timing, Failure):
            row['error'] = str(timing)
            continue
        row.update(
            latency_ms=timing.median, latency_mean_ms=timing.mean, latency_p90_ms=timing.p90, disturbed=timing.disturbed or None
        )


def main():
    args = parse_args()
    console = wide_console()
    with one_line_errors(), quiet_output() as output:
        for keep in args.keep:
            check_keep(keep)
        if args.threads:
            torch.set_num_threads(args.threads)
        install_safe_loading(args.unsafe_checkpoint)
        launch.make_folder(args.out, '--out')
        runner = build(args.config, args.checkpoint, args, output)
        batches = samples(runner, args.images)
        rows, models = operating_points(runner, args, batches)
        more_rows, more_models = static_nets(args, output)
        rows, models = rows + more_rows, {**models, **more_models}
        add_costs(rows, models, batches, args)
        facts = environment(args.device)
        title = f'{Path(args.config).stem}: {rows[0]["metric"]} over latency'
        kind = 'as trained' if args.no_deploy else 'deployed'
        lines = [f'Batch 1, {len(batches)} images of the test set, {kind}; score: {rows[0]["metric"]}.', describe(facts)]
        lines += [f'{row["name"]}: {row["error"]}' for row in rows if row.get('error')] + doubt_notes(rows, COLUMNS)
        paths = write_sweep(args.out, rows, rows[0]['metric'], facts, title, lines)
    console.print(rich_table(rows, COLUMNS, title))
    for line in lines:
        console.print(line, markup=False)
    console.print(', '.join(map(str, paths)))


if __name__ == '__main__':
    main()

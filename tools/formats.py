"""One trained model in every format that a CPU can run: score, milliseconds, megabytes.

    python tools/formats.py CONFIG CHECKPOINT --out-dir work_dirs/formats
    python tools/formats.py CONFIG CHECKPOINT --formats torch onnx onnx-int8 openvino openvino-int8 --images 200 --batch 1
    python tools/formats.py CONFIG CHECKPOINT --reuse --no-score --batch 1 8      # time what an earlier call wrote

Each format is made (files go to --out-dir), tested by the config's own evaluator, and timed: a whole test_step, uint8 images on
the CPU to results, all formats in this process taking turns, on the first image of the test set. `x first` is the latency over
that of the first format, `change` its score minus that one's. int8 is calibrated on the config's training images. A format that
fails says why in its row; the others go on. The table lies in --out-dir as formats.md, .html and .json.
"""

import argparse
import json
from pathlib import Path

import _before_imports  # noqa: F401  (before torch)
import torch
from mmengine.runner import CheckpointLoader

from mmkerneldna import launch
from mmkerneldna.checkpoints.loading import install_safe_loading
from mmkerneldna.datasets import check_data
from mmkerneldna.deploy.file_meta import read_meta
from mmkerneldna.deploy.quantise import FEWEST_IMAGES, has_vnni
from mmkerneldna.errors import UsageError, one_line, one_line_errors
from mmkerneldna.launch.arguments import add_cfg_options_argument, add_unsafe_argument, add_verbose_argument, image_size, number
from mmkerneldna.launch.calibration import DEFAULT_COUNT
from mmkerneldna.launch.evaluation import Evaluation
from mmkerneldna.launch.formats import FORMATS, FormatMaker, score_row, time_formats
from mmkerneldna.launch.quiet import quiet_output
from mmkerneldna.launch.trained import build_trained
from mmkerneldna.measure.environment import describe, environment
from mmkerneldna.measure.tables import wide_console
from mmkerneldna.runs.format_table import complete_rows, show_format_table, write_format_table


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a file, or package::folder/name.py')
    parser.add_argument('checkpoint', help='weights of the whole model')
    parser.add_argument('--formats', nargs='+', choices=list(FORMATS), default=list(FORMATS), help='default: all')
    parser.add_argument('--images', type=number(1), metavar='N', help='score on the first N test images (default: all)')
    parser.add_argument('--no-score', action='store_true', help='only make and time; with --reuse earlier scores stay')
    parser.add_argument('--batch', type=number(1), nargs='*', default=[1, 8], help='images per timed call; none: no timing')
    parser.add_argument('--size', type=image_size, metavar='N|HxW', help='of the files (default: of the first test image)')
    parser.add_argument(
        '--dynamic', choices=['both', 'batch', 'none'], default='both', help='what may vary in a file: both is batch and size'
    )
    parser.add_argument('--calib', type=number(FEWEST_IMAGES), default=DEFAULT_COUNT, metavar='N', help='images for int8')
    parser.add_argument(
        '--max-drop', type=number(0, whole=False), metavar='POINTS', help='largest loss of int8: layers that hurt stay float'
    )
    parser.add_argument('--repeats', type=number(1), default=20, help='timed rounds')
    parser.add_argument('--warmup', type=number(0), default=3, help='rounds before them')
    parser.add_argument('--threads', type=number(1), help="CPU threads of torch and of the runtimes (default: torch's choice)")
    parser.add_argument('--out-dir', type=Path, default=Path('work_dirs/formats'))
    parser.add_argument('--reuse', action='store_true', help='take the files in --out-dir as they are')
    add_unsafe_argument(parser)
    add_cfg_options_argument(parser)
    add_verbose_argument(parser)
    return parser.parse_args()


def prepare_config(args):
    """The config, its data looked at."""
    cfg = launch.load_config(args.config, args.cfg_options)
    launch.make_folder(args.out_dir, '--out-dir')
    cfg.work_dir = str(args.out_dir / 'tests')
    launch.make_folder(cfg.work_dir, '--out-dir')
    check_data(cfg, splits=('test',))
    return cfg


def earlier_rows(args):
    """Format -> row of an earlier call into the same folder."""
    path = args.out_dir / 'formats.json'
    if not (args.reuse and path.is_file()):
        return {}
    content = json.loads(path.read_text())
    if content.get('checkpoint') != args.checkpoint:
        raise UsageError(f'{path} is of checkpoint {content.get("checkpoint")}: leave --reuse out, or name another --out-dir')
    return {row['format']: row for row in content['rows']}


def make_and_score(args, maker, evaluation, say):
    """Rows and models of all formats; a row without a model says why."""
    earlier, rows, models = earlier_rows(args), [], {}
    for key in args.formats:
        say(f'{FORMATS[key].title}:')
        try:
            model = maker(key)
            model.eval()
            metrics = {} if args.no_score else evaluation(model)
        except UsageError:
            raise
        except Exception as error:  # the other formats go on
            row = dict(name=FORMATS[key].title, format=key, note=f'failed: {one_line(error)}')
            say(f'  {row["note"]}')
        else:
            row = score_row(key, model, metrics)
            models[key] = model
            row['note'] = note_of(key, maker)
        scores = earlier.get(key, {}) if args.no_score else {}
        rows.append({**{name: scores[name] for name in scores if name != 'note' or not row['note']}, **row})
    return rows, models


def note_of(key, maker) -> str | None:
    """What a reader of the table should know about a row."""
    report = maker.reports.get(key)
    notes = []
    meta = read_meta(maker.files[key]) if key in maker.files else None
    if meta is not None and meta.batch == 1 and maker.dynamic != 'none':
        notes.append(f'static: one image of {meta.size[0]}x{meta.size[1]} at a time')
    if report is not None and report.left_float:
        notes.append(f'{len(report.left_float)} layers left float: {", ".join(report.left_float)}')
    if FORMATS[key].dtype == 'int8' and not has_vnni():
        notes.append('this CPU has no VNNI: int8 is slow')
    return '; '.join(notes) or None


def finish(args, rows, facts, timed) -> str:
    """Complete the rows and write the files."""
    complete_rows(rows, args.batch)
    title = f'{Path(args.config.split("::")[-1]).stem}, {Path(args.checkpoint).name}'
    lines = [describe(facts)]
    if timed:
        lines.append(f'a whole test_step on images of {timed}, median of {args.repeats} rounds in turns')
    content = dict(config=args.config, checkpoint=args.checkpoint, environment=facts, images=args.images, calib=args.calib)
    write_format_table(args.out_dir, title, lines, rows, content, args.batch)
    return title, lines


def main():
    args = parse_args()
    console = wide_console()
    with one_line_errors():
        if args.threads:
            torch.set_num_threads(args.threads)
        with quiet_output() as output:
            say = output.display.say if output else print
            install_safe_loading(args.unsafe_checkpoint)
            checkpoint = CheckpointLoader.load_checkpoint(args.checkpoint, map_location='cpu')
            cfg = prepare_config(args)
            model = build_trained(cfg, args.checkpoint, checkpoint)
            evaluation = Evaluation(cfg, args.images, output)
            height, width = args.size or evaluation.dataset[0]['inputs'].shape[-2:]
            maker = FormatMaker(
                cfg, Path(args.config).stem, model, checkpoint, args.out_dir, (height, width), args.dynamic, args.calib,
                args.max_drop, evaluation.score_file, args.reuse,
            )  # fmt: skip
            rows, models = make_and_score(args, maker, evaluation, say)
            finish(args, rows, environment(), None)  # a run that is killed while it is timed keeps what it has
            if args.batch:
                cells = time_formats(models, evaluation.dataset, args.batch, args.repeats, args.warmup)
                for row in rows:
                    row.update(cells.get(row['format'], {}))
        title, lines = finish(args, rows, environment(), f'{height}x{width}' if args.batch else None)
        show_format_table(console, title, lines, rows, args.batch)
        console.print(f'{args.out_dir}/formats.md, .html, .json')


if __name__ == '__main__':
    main()

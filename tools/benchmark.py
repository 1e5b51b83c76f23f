"""Cost of models side by side, without training: latency, throughput, GMACs, parameters, memory.

    python tools/benchmark.py configs/a.py kdna=configs/b.py --scope backbone --batch 1 32 --size 224
    python tools/benchmark.py mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py configs/b.py --batch 1 --size 800x1344
    python tools/benchmark.py mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py --variant static kdna odconv4x --scope backbone

All models run in this process and take turns. A backbone is timed from images on the device to features; a whole model
by its test_step: images on the CPU, preprocessing, network, post-processing. Weights are random: a trained detector
finds other numbers of objects, and its post-processing costs accordingly. `x first` is the latency over that of the
first config, in the same process. What fails or runs out of memory is named in its cell. `deployed M` is what a model holds
once every convolution has a kernel of its own; with --deploy what the deployed copy really holds: norms folded, and with
--shared each kernel that children keep from their parent once.

    python tools/benchmark.py static=A.py kdna=B.py --proposals 1000 --batch 1 --size 800x1344

With random weights a two-stage detector finds another number of proposals with every backbone, which has nothing to do
with the backbone. --proposals N gives all of them the same work: every layer, the sorting and both NMS run and are timed,
but the RPN's scores and the box head's classes are replaced by made-up ones, alike in every model, so that exactly N
proposals per image reach the second stage, the same ones, and equally many boxes the mask head. It holds for latency,
memory and GMACs; a training step samples its boxes itself and stays as it is.

    python tools/benchmark.py static=A.py skip=B.py --keep 1 .75 .5 .25 --batch 1

A model with gates is listed once per keep rate, on one random image; GMACs are of what was run. Latency over real images, and
its spread across them, is what tools/sweep.py and the CostHook of a test measure.
"""

import argparse
from functools import partial
from itertools import product
from pathlib import Path

import _before_imports  # noqa: F401  (before torch)
import torch
from mmengine.logging import MMLogger

from mmkerneldna import launch
from mmkerneldna._quiet import is_verbose, quiet_warnings
from mmkerneldna.anatomy import has_proposals, is_exported
from mmkerneldna.deploy import deploy
from mmkerneldna.deploy.exported_model import ExportedModel, is_exported_name
from mmkerneldna.errors import UsageError, one_line_errors
from mmkerneldna.launch.arguments import (
    add_cfg_options_argument,
    add_deploy_arguments,
    add_device_argument,
    add_variant_argument,
    add_verbose_argument,
    deploy_options,
    image_size,
    number,
)
from mmkerneldna.measure.benchmark import (
    COST_COLUMNS,
    FILE_COLUMN,
    TRAIN_COLUMNS,
    Benchmark,
    Subject,
    build_from_config,
    unchanged,
)
from mmkerneldna.measure.environment import describe, environment
from mmkerneldna.measure.input_size import size_from_config
from mmkerneldna.measure.synthetic import synthetic_images
from mmkerneldna.measure.tables import (
    Column,
    doubt_notes,
    failure_notes,
    markdown,
    rich_table,
    wide_console,
    write_csv,
    write_json,
    write_text,
)
from mmkerneldna.measure.workload import Workload
from mmkerneldna.routing import set_keep
from mmkerneldna.routing.gates import check_keep

PRECISIONS = {'fp32': None, 'bf16': torch.bfloat16, 'fp16': torch.float16}
LEAD_COLUMNS = (Column('name', 'model'), Column('batch', 'batch', 0), Column('height', 'H', 0), Column('width', 'W', 0))
PROPOSALS = Column('proposals', 'proposals', 0)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'configs',
        nargs='+',
        metavar='[NAME=]CONFIG',
        help='a file, or package::folder/name.py; or an exported file (.onnx, .xml, .pt2)',
    )
    add_variant_argument(parser, nargs='+', default=[None])
    parser.add_argument('--scope', choices=['model', 'backbone'], default='model')
    parser.add_argument('--batch', type=number(1), nargs='+', default=[1, 32])
    parser.add_argument(
        '--size',
        type=image_size,
        nargs='+',
        metavar='N|HxW',
        help='of the images; several go (default: 224 for backbones, else what the first config states)',
    )
    parser.add_argument(
        '--proposals',
        type=int,
        metavar='N',
        help='two-stage detectors: as many proposals per image, and '
        'the same second stage, in every model (default: what random weights find)',
    )
    parser.add_argument(
        '--keep',
        type=float,
        nargs='+',
        metavar='PART',
        help='models with gates (SkipBlocks, SparseBlocks): once per keep rate in (0, 1], set on random images',
    )
    add_cfg_options_argument(parser, 'every config')
    add_device_argument(parser)
    parser.add_argument(
        '--amp', nargs='?', const='bf16', default='fp32', choices=list(PRECISIONS), help='autocast (bf16 if no type is named)'
    )
    parser.add_argument('--channels-last', action='store_true')
    add_deploy_arguments(parser, 'time')
    parser.add_argument('--train-step', action='store_true', help='also time a whole training step')
    parser.add_argument('--repeats', type=number(1), default=20, help='timed rounds')
    parser.add_argument('--warmup', type=number(0), default=5, help='rounds before them')
    parser.add_argument('--threads', type=number(1), help='CPU threads of torch')
    parser.add_argument('--out-dir', type=Path, default=Path('work_dirs/benchmark'))
    add_verbose_argument(parser)
    return parser.parse_args()


def read_prepare(args):
    """What turns a model as it was built (eval mode, on the device) into the one that is timed."""
    options = deploy_options(args)
    if options is None:
        return unchanged
    return lambda model, workload: model if is_exported(model) else deploy(model, dtype=workload.dtype, **options)


def read_subjects(args):
    """Subjects, and name -> config of those that have one."""
    files = [text for text in args.configs if is_exported_name(text)]
    check_files(args, files)
    subjects, configs = [], {}
    for text, variant in product(args.configs, args.variant):
        name, _, path = text.rpartition('=')
        if text in files:
            if variant == args.variant[0]:
                subjects.append(Subject(name or Path(path).name, lambda path=path: ExportedModel(path)))
            continue
        cfg = launch.load_config(path, args.cfg_options, variant=variant)
        launch.unsync_batch_norm(cfg)
        name = name or (Path(path.split('::')[-1]).stem if len(args.configs) > 1 or variant is None else '')
        name = ' '.join(filter(None, (name, variant)))
        configs[name] = cfg
        build = partial(build_from_config, cfg, args.scope)
        if args.keep and has_gates(cfg.model):
            subjects += [Subject(f'{name} keep {keep:g}', partial(with_keep, build, keep, args)) for keep in args.keep]
        else:
            subjects.append(Subject(name, build))
    if args.keep and not any(' keep ' in subject.name for subject in subjects):
        raise UsageError('--keep is for models with SkipBlocks or SparseBlocks; no model here has them, leave it out')
    names = [subject.name for subject in subjects]
    if len(set(names)) < len(names):
        raise UsageError(f'two configs have one name ({", ".join(names)}); write NAME=CONFIG')
    return subjects, configs


def check_files(args, files) -> None:
    """Refuse what exported files can't do.

    Raises:
        UsageError: names the flag.
    """
    if files and args.scope != 'model':
        raise UsageError(f'--scope {args.scope}: {files[0]} is an exported file, a whole model: use --scope model')
    if files and args.device != 'cpu':
        raise UsageError(f'--device {args.device}: {files[0]} is an exported file and runs on the CPU here: add --device cpu')


def has_gates(node) -> bool:
    """Whether a part of a model's config puts gates into it."""
    if isinstance(node, dict):
        return node.get('type') in ('SkipBlocks', 'SparseBlocks') or any(map(has_gates, node.values()))
    return isinstance(node, (list, tuple)) and any(map(has_gates, node))


def with_keep(build, keep, args):
    """The model at a keep rate. Its gates are random: which parts are computed is made up, how many is not."""
    model = build()
    height, width = args.size[0] if args.size else (224, 224)
    images = torch.stack(synthetic_images(4, (height, width))).float().sub(127.5).div(58)
    set_keep(model, keep, images)
    return model


def check_proposals(args, configs) -> None:
    """Say which models --proposals does not concern.

    Raises:
        UsageError: it concerns none, or is no number of proposals.
    """
    if args.proposals is None:
        return
    if args.proposals < 1:
        raise UsageError(f'--proposals {args.proposals}: at least 1 is needed')
    without = [name for name, cfg in configs.items() if not has_proposals(cfg.model)]
    if args.scope == 'backbone' or len(without) == len(configs):
        raise UsageError(
            f'--proposals {args.proposals} is for two-stage detectors with --scope model; no model here has an '
            'RPN, leave it out'
        )
    if without:
        print(f'no RPN, not changed by --proposals: {", ".join(without)}')


def read_workloads(args, configs):
    stated = size_from_config(next(iter(configs.values()))) if configs and args.scope == 'model' else None
    sizes = args.size or [stated or (224, 224)]
    return [
        Workload(batch, size, args.device, PRECISIONS[args.amp], args.channels_last, args.proposals)
        for size in sizes
        for batch in args.batch
    ]


def title_of(args) -> str:
    layout = ', channels_last' if args.channels_last else ''
    proposals = f', {args.proposals} fixed proposals per image' if args.proposals else ''
    options = ''.join(f', {key}={value}' for key, value in (args.cfg_options or {}).items())
    return (
        f'{args.scope}, {args.amp}{layout}, {args.device}{proposals}{options}, median of {args.repeats} interleaved '
        f'rounds after {args.warmup} to warm up'
    )


def write_files(args, facts, rows, columns) -> None:
    settings = dict(
        scope=args.scope, repeats=args.repeats, warmup=args.warmup, proposals=args.proposals, cfg_options=args.cfg_options
    )
    write_json(args.out_dir / 'benchmark.json', dict(environment=facts, settings=settings, rows=rows))
    write_csv(args.out_dir / 'benchmark.csv', [{**row, 'scope': args.scope, **facts} for row in rows])
    notes = [f'- {note}' for note in failure_notes(rows)] + [f'\n{note}' for note in doubt_notes(rows, columns)]
    write_text(
        args.out_dir / 'benchmark.md',
        '\n'.join([f'# {title_of(args)}', '', describe(facts), '', markdown(rows, columns), *notes]) + '\n',
    )


def main():
    args = parse_args()
    console = wide_console()
    # What is built is said by the table; --verbose lists who borrows from whom.
    MMLogger.get_instance('benchmark', log_level='INFO' if is_verbose() else 'WARNING')
    with one_line_errors(), quiet_warnings():
        for keep in args.keep or ():
            check_keep(keep)
        if args.threads:
            torch.set_num_threads(args.threads)
        prepare = read_prepare(args)
        subjects, configs = read_subjects(args)
        check_proposals(args, configs)
        workloads = read_workloads(args, configs)
        launch.make_folder(args.out_dir, '--out-dir')
        columns = LEAD_COLUMNS + ((PROPOSALS,) if args.proposals else ()) + COST_COLUMNS
        columns += (FILE_COLUMN,) if any(map(is_exported_name, args.configs)) else ()
        columns += TRAIN_COLUMNS if args.train_step else ()
        facts = environment(args.device)
        benchmark = Benchmark(subjects, workloads, prepare, args.repeats, args.warmup)
        # After each workload, so that a run that is killed keeps what it measured.
        with console.status(f'{len(subjects)} models, {len(workloads)} workloads'):
            rows = benchmark.run(args.train_step, lambda rows: write_files(args, facts, rows, columns))
    console.print(describe(facts), style='dim', soft_wrap=True)
    console.print(rich_table(rows, columns, title_of(args)))
    for note in failure_notes(rows):
        console.print(f'- {note}', style='red', markup=False)
    for note in doubt_notes(rows, columns):
        console.print(note, style='yellow', markup=False)
    console.print(f'{args.out_dir}/benchmark.json, .csv, .md')


if __name__ == '__main__':
    main()

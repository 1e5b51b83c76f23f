"""The tables of docs/performance.md: what deploying gains, what the gates still cost, what a training step costs.

    python tools/benchmark_deploy.py backbone --depth 50 18 --size 224 512
    python tools/benchmark_deploy.py train --depth 50 --batch 2 --size 224
    python tools/benchmark_deploy.py backbone --depth 50 --size 224 512 --backends direct torch onednn onnxruntime openvino auto
    python tools/benchmark_deploy.py parts --model faster --size 320x544
    python tools/benchmark_deploy.py shared --size 224
    python tools/benchmark_deploy.py winograd --rounds 10

Every row is a ratio to a named baseline in one process: calls take turns, and a ratio is the median over rounds of the ratio
within a round, so that a machine that is slow for a while is slow for both. --clock cpu counts the process's own CPU time
instead (use it with --threads 1 on a machine that others use as well).

Weights are random. So that Faster R-CNNs do equal work end to end, the values of two head outputs are replaced by the same
made-up ones in all of them: --proposals boxes per image reach the second stage (see mmkerneldna.measure.fixed_proposals).

The backend 'direct' is torch without Winograd's filtering of 3x3 convolutions (deploy(winograd=False)).
winograd compares the two ways layer by layer: 3x3 convolutions of backbones, pyramids and heads, whatever would be taken.

shared is a ResNet-18 whose children, without spatial scales, leave half of the parameters: deploy(shared=True) and without.
"""

import argparse
import io
from collections.abc import Callable
from functools import partial
from itertools import product

import _before_imports  # noqa: F401  (before torch)
import numpy as np
import torch
from mmdet.models.backbones import ResNet
from mmengine.hub import get_config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmkerneldna._quiet import quiet_warnings
from mmkerneldna.backbones import KDNAResNet
from mmkerneldna.deploy import deploy
from mmkerneldna.deploy.backends import BACKENDS
from mmkerneldna.deploy.packed import PackedConv2d
from mmkerneldna.deploy.packing import packed_weight_bytes
from mmkerneldna.deploy.probe import run_parts
from mmkerneldna.deploy.winograd import winograd_conv, winograd_kernel
from mmkerneldna.errors import one_line_errors
from mmkerneldna.launch.arguments import add_device_argument, add_verbose_argument, image_size, number
from mmkerneldna.measure.clock import Sample, disturbance
from mmkerneldna.measure.environment import describe, environment
from mmkerneldna.measure.latency import Failure, interleaved_samples
from mmkerneldna.measure.memory import weight_bytes
from mmkerneldna.measure.tables import DOUBT, DOUBT_MEANING
from mmkerneldna.measure.workload import Workload, inference_call, train_call
from mmkerneldna.sharing import share_kernels

DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
#: C_in, C_out, and the batch and side of the map, of 3x3 convolutions
LAYERS = [
    (64, 64, 1, 56), (128, 128, 1, 28), (256, 256, 1, 14), (512, 512, 1, 7),  # ResNet at 224
    (128, 128, 1, 64), (256, 256, 1, 32), (512, 512, 1, 16),  # at 512
    (256, 256, 1, 128), (256, 256, 100, 14),  # pyramid, mask head on 100 boxes
    (512, 512, 1, 64), (512, 512, 1, 128), (2048, 512, 1, 128), (4096, 512, 1, 16),  # UPerNet
]  # fmt: skip
#: torch without Winograd's filtering
DIRECT = 'direct'
MODES = {'false': False, 'true': True, 'dynamic': 'dynamic'}
#: child -> parent, in a ResNet-18 of the usual depth: 11.2 -> 5.6 M parameters
HALF = {f'layer{s}.{child}': f'layer{s}.1.conv2' for s in (3, 4) for child in ('0.conv2', '1.conv1')}
PARTS = dict(
    faster=(
        'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
        'mmkerneldna::faster_rcnn/faster-rcnn_kdna-r50_fpn_1x_coco.py',
    ),
    upernet=(
        'mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py',
        'mmkerneldna::upernet/upernet_kdna-r50_4xb4-160k_ade20k-512x512.py',
    ),
)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=['backbone', 'train', 'parts', 'shared', 'winograd'])
    parser.add_argument('--depth', type=int, nargs='+', default=[50, 18])
    parser.add_argument('--model', choices=list(PARTS), default='faster', help='of parts')
    parser.add_argument('--proposals', type=number(1), default=1000, help='per image, of Faster R-CNN end to end')
    parser.add_argument(
        '--layer', type=number(1), nargs=4, action='append', metavar=('IN', 'OUT', 'BATCH', 'SIDE'), help='of winograd'
    )
    parser.add_argument('--batch', type=number(1), nargs='+', default=[1])
    parser.add_argument('--size', type=image_size, nargs='+', default=[(224, 224)], metavar='N|HxW')
    parser.add_argument('--modes', nargs='+', choices=list(MODES), default=['false'], help='compile=')
    parser.add_argument('--backends', nargs='+', choices=[*BACKENDS, DIRECT], default=['torch'], help='backend=')
    parser.add_argument('--cuda-graph', action='store_true')
    parser.add_argument('--gate', choices=['torch', 'triton'], default='torch')
    parser.add_argument('--dtype', choices=list(DTYPES), default='fp32', help='of the deployed copies; AMP of train')
    add_device_argument(parser)
    parser.add_argument('--threads', type=number(1), default=torch.get_num_threads())
    parser.add_argument('--clock', choices=['wall', 'cpu'], default='wall')
    parser.add_argument('--rounds', type=number(1), default=30)
    add_verbose_argument(parser)
    return parser.parse_args()


def measure(calls: dict[str, Callable], args) -> dict[str, list[Sample]]:
    """Samples of each call, one per round.

    Raises:
        RuntimeError: a call failed.
    """
    taken = interleaved_samples(calls, args.device, args.rounds, warmup=3)
    for name, samples in taken.items():
        if isinstance(samples, Failure):
            raise RuntimeError(f'{name}: {samples}')
    return taken


def show(title: str, taken: dict[str, list[Sample]], baselines: dict[str, list[str]], args) -> None:
    """One line per call; ``baselines`` names, per call, what its ratios refer to."""
    table = Table(title=title, title_justify='left')
    for column in ('call', 'median ms', 'p90 ms', 'min ms', 'ratios: median within a round (of minima)'):
        table.add_column(column, justify='left' if column[0] in 'cr' else 'right')
    times = {name: np.array([getattr(sample, args.clock) for sample in samples]) for name, samples in taken.items()}
    doubtful = {name for name, samples in taken.items() if args.clock == 'wall' and disturbance(samples, args.device)}
    for name, values in times.items():
        ratios = [
            f'{np.median(values / times[b]):.3f} ({values.min() / times[b].min():.3f}) x {b}' for b in baselines.get(name, [])
        ]
        median, *others = (f'{v:.2f}' for v in (np.median(values), np.percentile(values, 90), values.min()))
        table.add_row(name, median + (DOUBT if name in doubtful else ''), *others, ', '.join(ratios))
    Console(width=150).print(table)
    if doubtful:
        Console(width=150).print(f'{DOUBT} {DOUBT_MEANING}')


def randomised(model: nn.Module) -> nn.Module:
    """BN statistics as a trained net might have them, so that nothing is an identity."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    model.eval()  # not chained: mmdet's backbones return None
    return model


def backbone(depth: int, batch: int, size, args) -> None:
    options = dict(cuda_graph=args.cuda_graph, dtype=DTYPES[args.dtype])
    nets = {
        name: randomised(KDNAResNet(depth, sharing=sharing)).to(args.device)
        for name, sharing in (('static', None), ('kdna', 'default'))
    }
    models, baselines = {f'{name} eager': net for name, net in nets.items()}, {'kdna eager': ['static eager']}
    for tag, mode in modes_of(args).items():
        for name, net in nets.items():
            gate = args.gate if name == 'kdna' else 'torch'
            models[f'{name} {tag}'] = deploy(net, gate=gate, **mode, **options)
            baselines[f'{name} {tag}'] = [f'{name} eager'] + ([f'static {tag}'] if name == 'kdna' else [])
    taken = measure(calls_of(models, batch, size, args), args)
    for name in nets if 'auto' in args.backends else ():
        baselines[f'{name} deployed auto'].append(fastest(taken, f'{name} deployed', 'auto'))
        Console().print(f'{name}: auto took {models[f"{name} deployed auto"].deploy_report.backends}')
    show(f'ResNet-{depth} backbone, batch {batch}, {size[0]}x{size[1]}, deployed in {args.dtype}', taken, baselines, args)


def modes_of(args) -> dict[str, dict]:
    """Name -> options of every way to deploy that was asked for."""
    return {
        ' '.join(['deployed', *[mode] * (mode != 'false'), *[backend] * (backend != 'torch')]): dict(
            compile=MODES[mode], backend='torch' if backend == DIRECT else backend, winograd=backend != DIRECT
        )
        for mode, backend in product(args.modes, args.backends)
    }


def calls_of(models: dict[str, nn.Module], batch: int, size, args) -> dict[str, Callable]:
    """Calls of backbones on one batch."""
    images = torch.randn(batch, 3, *size, device=args.device)
    return {name: _without_gradients(partial(model, images)) for name, model in models.items()}


def fastest(taken: dict[str, list[Sample]], start: str, apart: str) -> str:
    """The fastest call, in its median, of those whose names begin with ``start`` and do not end in ``apart``."""
    medians = {name: np.median([sample.wall for sample in samples]) for name, samples in taken.items()}
    return min((name for name in medians if name.startswith(start) and not name.endswith(apart)), key=medians.__getitem__)


def shared(depth: int, batch: int, size, args) -> None:
    """Kernels that stay shared: latency, file and memory."""
    static = randomised(ResNet(depth)).to(args.device)
    half = randomised(share_kernels(ResNet(depth), HALF, spatial_scale=False)).to(args.device)
    models = {
        'static': deploy(static, dtype=DTYPES[args.dtype]),
        'half': deploy(half, dtype=DTYPES[args.dtype]),
        'half, shared': deploy(half, dtype=DTYPES[args.dtype], shared=True),
    }
    taken = measure(calls_of(models, batch, size, args), args)
    baselines = {'half': ['static'], 'half, shared': ['half', 'static']}
    show(f'ResNet-{depth} backbone, deployed, batch {batch}, {size[0]}x{size[1]}, {args.dtype}', taken, baselines, args)
    sizes = {name: (file_bytes(model), weight_bytes(model) + packed_weight_bytes(model)) for name, model in models.items()}
    for name, (file, memory) in sizes.items():
        ratios = [f'{value / base:.3f}' for value, base in zip((file, memory), sizes['static'])]
        Console().print(
            f'{name}: file {file / 1e6:.2f} MB ({ratios[0]} of static), weights in memory {memory / 1e6:.2f} MB ({ratios[1]})'
        )


def winograd(args) -> None:
    """3x3 convolutions, the window summed directly and filtered."""
    calls, baselines = {}, {}
    for c_in, c_out, batch, side in args.layer or LAYERS:
        conv = nn.Conv2d(c_in, c_out, 3, padding=1).requires_grad_(False)
        x = torch.randn(batch, c_in, side, side).to(memory_format=torch.channels_last)
        name, kernel = f'{c_in} -> {c_out}, {batch} x {side}x{side}', winograd_kernel(conv.weight)
        calls[f'{name}, direct'] = _without_gradients(partial(PackedConv2d(conv, winograd=False), x))
        calls[f'{name}, filtered'] = _without_gradients(partial(winograd_conv, x, kernel, conv.padding))
        baselines[f'{name}, filtered'] = [f'{name}, direct']
    show('3x3 convolutions, fp32', measure(calls, args), baselines, args)


def file_bytes(model: nn.Module) -> int:
    """Of the file that torch saves the weights in."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.tell()


def train(depth: int, batch: int, size, args) -> None:
    dtype = None if args.dtype == 'fp32' else DTYPES[args.dtype]
    workload = Workload(batch, size, args.device, dtype)
    calls, kept = {}, {}
    for name, sharing in (('static', None), ('kdna', 'default')):
        torch.manual_seed(0)
        model = workload.place(KDNAResNet(depth, sharing=sharing, norm_eval=False)).train()
        calls[f'{name} step'] = train_call(model, workload)
        kept[name] = training_memory(model, calls[f'{name} step'], workload)
    taken = measure(calls, args)
    show(
        f'ResNet-{depth} training step, batch {batch}, {size[0]}x{size[1]}, {args.dtype}',
        taken,
        {'kdna step': ['static step']},
        args,
    )
    Console().print(
        f'memory MiB: static {kept["static"]:.1f}, kdna {kept["kdna"]:.1f}, ratio {kept["kdna"] / kept["static"]:.3f}'
    )


def training_memory(model: nn.Module, step: Callable, workload: Workload) -> float:
    """MiB. On CUDA the peak of a whole step; on a CPU what autograd keeps of the forward pass, parameters apart."""
    if torch.device(workload.device).type == 'cuda':
        step()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() / 2**20
    storages, images = {}, torch.randn(workload.batch, 3, *workload.size)
    known = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}

    def note(tensor):
        storages.setdefault(tensor.untyped_storage().data_ptr(), (tensor, tensor.untyped_storage().nbytes()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), workload.autocast():
        features = model(images)  # noqa: F841  (alive until all is counted)
    return sum(nbytes for pointer, (_, nbytes) in storages.items() if pointer not in known) / 2**20


def parts(size, args) -> None:
    """Whole models: the network's parts, and all of test_step; what is left is pre- and post-processing."""
    models = {}
    for name, path in zip(('static', 'kdna'), PARTS[args.model]):
        cfg = get_config(path)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            models[f'{name} eager'] = randomised(MODELS.build(cfg.model)).to(args.device)
    options = dict(cuda_graph=args.cuda_graph, gate=args.gate, dtype=DTYPES[args.dtype])
    for tag, mode in modes_of(args).items():
        models[f'kdna {tag}'] = deploy(models['kdna eager'], **mode, **options)
    images = torch.randn(1, 3, *size, device=args.device)
    workload = Workload(1, size, args.device, proposals=args.proposals)
    for part, make in (
        ('backbone and neck', lambda m: lambda: m.extract_feat(images)),
        ('with heads, up to raw outputs', lambda m: lambda: run_parts(m, images)),
        ('end to end (test_step)', lambda m: inference_call(m, workload)),
    ):
        calls = {name: _without_gradients(make(model)) for name, model in models.items()}
        count = workload.proposals_of(models['static eager']) if 'end to end' in part else None
        fixed = f', {count} fixed proposals' if count else ''
        show(
            f'{args.model}, {part}, {size[0]}x{size[1]}, batch 1{fixed}',
            measure(calls, args),
            {name: ['static eager'] for name in calls if name != 'static eager'},
            args,
        )


def _without_gradients(call: Callable) -> Callable:

    def run():
        with torch.no_grad():
            return call()

    return run


def run(size, args) -> None:
    if args.what == 'parts':
        return parts(size, args)
    if args.what == 'winograd':
        return winograd(args)
    for depth in [18] if args.what == 'shared' else args.depth:
        for batch in args.batch:
            dict(backbone=backbone, train=train, shared=shared)[args.what](depth, batch, size, args)


def main():
    args = parse_args()
    torch.set_num_threads(args.threads)
    MMLogger.get_instance('benchmark_deploy', log_level='ERROR')
    Console(width=150).print(f'{describe(environment(args.device))}, clock {args.clock}, {args.rounds} rounds')
    with one_line_errors(), quiet_warnings():
        for size in args.size:
            run(size, args)


if __name__ == '__main__':
    main()

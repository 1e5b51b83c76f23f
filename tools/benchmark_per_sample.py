"""Time every strategy of ``mmkerneldna.layers.per_sample`` on the conv shapes of ResNets and MobileNetV2.

The rules of ``select_per_sample`` are read off this table.

    python tools/benchmark_per_sample.py                       # batches 2, 8, 32 at the sizes of a 224 input
    python tools/benchmark_per_sample.py --batches 2 --scale 3  # three times the side: a detector's feature maps
"""

import argparse
from collections.abc import Callable

import _before_imports  # noqa: F401  (before torch)
import torch
from rich.console import Console
from rich.table import Table

from mmkerneldna.launch.arguments import add_verbose_argument, device, number
from mmkerneldna.layers.mixture import mixture_conv2d
from mmkerneldna.layers.per_sample import PER_SAMPLE, select_per_sample
from mmkerneldna.measure.latency import Failure, time_interleaved
from mmkerneldna.measure.tables import DOUBT, DOUBT_MEANING

# (in_channels, out_channels, kernel, stride, groups, side at a 224 input)
SHAPES = [
    (64, 64, 3, 1, 1, 56),
    (128, 128, 3, 1, 1, 28),
    (256, 256, 3, 1, 1, 14),
    (512, 512, 3, 1, 1, 7),
    (128, 256, 3, 2, 1, 28),
    (64, 256, 1, 1, 1, 56),
    (256, 64, 1, 1, 1, 56),
    (1024, 256, 1, 1, 1, 14),
    (512, 2048, 1, 1, 1, 7),
    (256, 256, 3, 1, 32, 14),
    (96, 96, 3, 2, 96, 112),
    (384, 384, 3, 1, 384, 14),
]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--batches', type=number(1), nargs='+', default=[2, 8, 32])
    parser.add_argument('--scale', type=float, default=1.0, help='multiplies the side of every feature map')
    parser.add_argument('--num-experts', type=number(1), default=4)
    parser.add_argument('--repeats', type=number(1), default=7)
    parser.add_argument('--device', type=device, default='cpu')
    parser.add_argument('--channels-last', action='store_true')
    parser.add_argument('--backward', action='store_true', help='time forward and backward')
    add_verbose_argument(parser)
    return parser.parse_args()


def make_case(shape, batch: int, args: argparse.Namespace) -> dict[str, torch.Tensor]:
    in_channels, out_channels, kernel, _, groups, side = shape
    side = max(1, round(side * args.scale))
    x = torch.randn(batch, in_channels, side, side, device=args.device, requires_grad=args.backward)
    if args.channels_last:
        x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_(args.backward)
    experts = torch.randn(args.num_experts, out_channels, in_channels // groups, kernel, kernel, device=args.device)
    attention = torch.rand(batch, args.num_experts, device=args.device)
    return dict(x=x, attention=attention, experts=experts.requires_grad_(args.backward))


def make_call(case, geometry, strategy: str, backward: bool) -> Callable:
    def forward():
        return mixture_conv2d(**case, **geometry, strategy=strategy)

    return (lambda: forward().sum().backward()) if backward else forward


def time_shape(shape, batch: int, args: argparse.Namespace):
    _, _, kernel, stride, groups, _ = shape
    case = make_case(shape, batch, args)
    geometry = dict(stride=stride, padding=kernel // 2, groups=groups)
    names = [name for name in (*PER_SAMPLE, 'outputs') if (name != 'plain' or batch == 1) and (name != 'matmul' or kernel == 1)]
    calls = {name: make_call(case, geometry, name, args.backward) for name in names}
    with torch.set_grad_enabled(args.backward):
        chosen = select_per_sample(case['x'], case['experts'].shape[1:], stride, kernel // 2, 1, groups)
        return time_interleaved(calls, args.device, args.repeats, warmup=1), chosen


def cell(timing) -> str:
    if timing is None:
        return '-'
    return str(timing.kind) if isinstance(timing, Failure) else f'{timing.median:.2f}{DOUBT if timing.disturbed else ""}'


def main() -> None:
    args = parse_args()
    columns = (*PER_SAMPLE, 'outputs')
    table = Table(
        *('shape (in-out k stride groups side)', 'batch', *columns, 'fastest', 'chosen', 'chosen / fastest'),
        title=f'{args.num_experts} experts, {"forward+backward" if args.backward else "forward"}, '
        f'{args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}, median ms',
    )
    for shape in SHAPES:
        for batch in args.batches:
            timings, chosen = time_shape(shape, batch, args)
            medians = {name: timing.median for name, timing in timings.items() if not isinstance(timing, Failure)}
            fastest = min(medians, key=medians.get)
            table.add_row(
                '{}-{} k{} s{} g{} {}'.format(*shape),
                str(batch),
                *(cell(timings.get(name)) for name in columns),
                fastest,
                chosen,
                f'{medians[chosen] / medians[fastest]:.2f}' if chosen in medians else '-',
            )
    Console(width=150).print(table, f'{DOUBT} {DOUBT_MEANING}')


if __name__ == '__main__':
    main()

"""What conditional computation costs and saves, part by part, each next to what it is compared with in the same rounds.

    python tools/benchmark_routing.py                       # all rows
    python tools/benchmark_routing.py --rows sparse --json out.json

Everything is deployed (norms folded, convolutions packed and fused), batch 1. A ratio above its target in the last column is
a miss. Masks are smooth noise above a threshold that keeps the stated part exactly, as neighbouring positions are needed
together; gates are computed and timed, and then overruled, so that random weights keep as much as the row says.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _before_imports  # noqa: F401  (before torch)
import torch
import torch.nn.functional as F
from mmdet.models.backbones import MobileNetV2, ResNet
from mmengine.logging import MMLogger
from torch import Tensor, nn

from mmkerneldna.deploy import deploy
from mmkerneldna.errors import one_line_errors
from mmkerneldna.launch.arguments import add_device_argument, number
from mmkerneldna.measure.paired import Case, report_pairs
from mmkerneldna.routing import decisions, keep_gates, set_keep, skip_blocks, sparse_blocks
from mmkerneldna.routing.stages import GatedStage, run_all


def smooth_mask(shape: tuple[int, int], keep: float, seed: int = 0) -> Tensor:
    """(h, w) of bool, the stated part of it true, neighbours alike."""
    noise = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(seed))
    side = max(1, min(shape) // 4) | 1
    smooth = F.avg_pool2d(noise, side, 1, side // 2, count_include_pad=False)[0, 0] if min(shape) > 4 else noise[0, 0]
    count = max(1, round(keep * smooth.numel()))
    mask = torch.zeros(smooth.numel(), dtype=torch.bool)
    mask[smooth.flatten().topk(count).indices] = True
    return mask.view(shape)


def resnet50(**kwargs) -> nn.Module:
    torch.manual_seed(0)
    net = ResNet(50, **kwargs)
    net.eval()
    return net


def mobilenet() -> nn.Module:
    torch.manual_seed(0)
    net = MobileNetV2(out_indices=(1, 2, 4))
    net.eval()
    return net


def skip_cases() -> Iterator[Case]:
    """SkipBlocks against a static net of the blocks that ran, and against the net without gates."""
    images = torch.randn(1, 3, 512, 512)
    net: Any = skip_blocks(resnet50(), 0.5)
    for gate in net.routing_gates.values():
        nn.init.normal_(gate.fc2.weight)
    net.eval()
    set_keep(net, 0.5, images)
    lean, asked = deploy(net, probe=images[..., :96, :96]), deploy(net, probe=images[..., :96, :96])
    every = deploy(net, probe=images[..., :96, :96])
    set_keep(every, 1)
    for gate in keep_gates(asked).values():
        gate.set_threshold(-1e9)
    static = deploy(resnet50(), probe=images[..., :96, :96])
    with decisions(lean) as seen, torch.no_grad():
        lean(images)
        kept = {path.removeprefix('routing_gates.'): bool(mask[0]) for path, mask in seen.masks().items()}
    ran = resnet50()
    for name, keep in kept.items():
        stage, block = name.split('_')
        if not keep:
            del getattr(ran, stage)._modules[block]
    ran = deploy(ran, probe=images[..., :96, :96])
    count = f'{sum(kept.values())} of {len(kept)} blocks'
    yield Case('SkipBlocks R50 512', f'keep .5 ({count})', lambda: lean(images), 'just these blocks', lambda: ran(images), 1.05)
    yield Case('SkipBlocks R50 512', 'keep 1', lambda: every(images), 'no gates', lambda: static(images), 1.03)
    yield Case('SkipBlocks R50 512', 'all kept, gates asked', lambda: asked(images), 'no gates', lambda: static(images), 1.03)


def sparse_cases() -> Iterator[Case]:
    """SparseBlocks on a ResNet-50's first two stages against the same blocks dense."""
    net = deploy(sparse_blocks(resnet50(num_stages=2, out_indices=(0, 1), strides=(1, 2), dilations=(1, 1)), 0.5, 16))
    targets = {0.5: 0.85, 0.25: 0.55, 0.1: 0.35}
    yield from _sparse(net, 'SparseBlocks R50 stages 1-2, 512', (1, 8, 16, 32), targets)


def mobilenet_cases() -> Iterator[Case]:
    """SparseBlocks on MobileNetV2's stages 2 to 5 against the same blocks dense."""
    net = deploy(sparse_blocks(mobilenet(), 0.5, 16, stages=(1, 2, 3, 4)))
    yield from _sparse(net, 'SparseBlocks MobileNetV2 stages 2-5, 512', (1, 8, 16, 32), {0.5: 0.8, 0.25: 0.5})


def _sparse(net: nn.Module, what: str, tiles: tuple[int, ...], targets: dict[float, float]) -> Iterator[Case]:
    parts = _parts(net)
    for tile in tiles:
        for keep, target in targets.items():
            masks = [_fixed_logits(x, tile, keep, seed) for seed, (*_, x) in enumerate(parts)]
            yield Case(
                what,
                f'tile {tile}, keep {keep}',
                lambda tile=tile, masks=masks: _run_sparse(parts, tile, masks),
                'dense',
                lambda: [run_all(blocks, x) for _, _, blocks, x in parts],
                target,
            )


def _parts(net: nn.Module) -> list[tuple[GatedStage, Any, list[Any], Tensor]]:
    """Stages, their gates, the blocks behind these and what they take of an image; the blocks add nothing to it."""
    parts, hooks = [], []
    stages = [m for m in net.modules() if isinstance(m, GatedStage)]
    for stage in stages:
        for gate, names in stage._units:
            if gate is not None:
                blocks: list[Any] = [stage.get_submodule(name) for name in names]
                note = blocks[0].register_forward_pre_hook(
                    lambda m, inputs, part=(stage, gate, blocks): parts.append((*part, inputs[0].clone()))
                )
                hooks.append(note)
    set_keep(net, 1)
    with torch.no_grad():
        net(torch.randn(1, 3, 512, 512))
    for hook in hooks:
        hook.remove()
    for *_, blocks, _ in parts:
        for block in blocks:
            last = [m for m in block.modules() if isinstance(m, nn.Conv2d)][-1]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
    for gate in keep_gates(net).values():
        gate.set_threshold(0.0)
    return parts


def _fixed_logits(x: Tensor, tile: int, keep: float, seed: int) -> Tensor:
    cells = (-(-x.shape[2] // tile), -(-x.shape[3] // tile))
    return smooth_mask(cells, keep, seed)[None, None].float() - 0.5


def _run_sparse(parts, tile: int, masks: list[Tensor]) -> None:
    for (stage, gate, blocks, x), mask in zip(parts, masks):
        gate.tile = tile
        own = type(gate).logits
        gate.logits = lambda x, own=own, gate=gate, mask=mask: own(gate, x).mul_(0).add_(mask)
        stage._gated(gate, blocks, x)


#: what --rows may name
ROWS = {'skip': skip_cases, 'sparse': sparse_cases, 'mobilenet': mobilenet_cases}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rows', nargs='+', choices=list(ROWS), default=list(ROWS))
    parser.add_argument('--repeats', type=number(1), default=15, help='timed rounds')
    parser.add_argument('--warmup', type=number(0), default=3, help='rounds before them')
    parser.add_argument('--threads', type=number(1), default=2, help='CPU threads of torch')
    add_device_argument(parser)
    parser.add_argument('--json', type=Path, help='write the rows there')
    return parser.parse_args()


def main():
    args = parse_args()
    torch.set_num_threads(args.threads)
    MMLogger.get_instance('benchmark_routing', log_level='ERROR')
    with one_line_errors():
        report_pairs((case for name in args.rows for case in ROWS[name]()), args, args.device)


if __name__ == '__main__':
    main()

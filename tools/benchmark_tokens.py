"""What routed positions, regions and tiles cost, each next to the dense way in the same rounds.

    python tools/benchmark_tokens.py                                # all rows
    python tools/benchmark_tokens.py --rows query --repeats 3       # a dense RetinaNet head with P2 takes seconds

Batch 1, random weights and gates; the detector is deployed. A ratio above its target in the last column is a miss.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _before_imports  # noqa: F401  (before torch)
import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from mmengine.hub import get_config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mmkerneldna.deploy import deploy
from mmkerneldna.errors import one_line_errors
from mmkerneldna.launch.arguments import number
from mmkerneldna.measure.paired import Case, report_pairs
from mmkerneldna.routing import PositionFFN2d, PositionMoE2d, RoutingAttention2d


def some_tiles(side: int, keep: float) -> Tensor:
    """(1, side, side) of bool: a square of about this part of all, off the border, and single tiles for what is left."""
    mask = torch.zeros(side, side, dtype=torch.bool)
    count = max(1, round(keep * side * side))
    edge = int(count**0.5)
    start = min(1, side - edge)
    mask[start : start + edge, start : start + edge] = True
    left = (~mask).flatten().nonzero()[:, 0]
    mask.view(-1)[left[torch.randperm(len(left), generator=torch.Generator().manual_seed(0))[: count - edge * edge]]] = True
    return mask[None]


def moe_cases() -> Iterator[Case]:
    """Experts per position against one dense expert of the same size."""
    for channels, side in ((256, 64), (512, 64), (512, 32)):
        x = channels_last(torch.randn(1, channels, side, side))
        dense = channels_last(nn.Conv2d(channels, channels, 1)).eval()
        what = f'PositionMoE2d {channels} -> {channels}, {side}x{side}'
        for count, target in ((4, 1.35), (16, 1.5)):
            layer = undecided(PositionMoE2d(channels, channels, num_experts=count))
            yield Case(what, f'1 of {count}', lambda x=x, m=layer: m(x), 'Conv2d', lambda x=x, m=dense: m(x), target)
            if count == 4:
                tree = undecided(PositionMoE2d(channels, channels, num_experts=count, gate=dict(type='TreeRouter')))
                yield Case(what, f'1 of {count}, tree', lambda x=x, m=tree: m(x), 'Conv2d', lambda x=x, m=dense: m(x), target)
    for channels, side in ((192, 64), (384, 32)):
        x = channels_last(torch.randn(1, channels, side, side))
        dense = nn.Sequential(nn.Conv2d(channels, 4 * channels, 1), nn.GELU(), nn.Conv2d(4 * channels, channels, 1))
        dense = channels_last(dense).eval()
        what = f'PositionFFN2d {channels} -> {4 * channels} -> {channels}, {side}x{side}'
        for count, target in ((4, 1.35), (16, 1.5)):
            layer = undecided(PositionFFN2d(channels, 4 * channels, num_experts=count))
            yield Case(what, f'1 of {count}', lambda x=x, m=layer: m(x), 'dense', lambda x=x, m=dense: m(x), target)


def channels_last(thing: Any) -> Any:
    return thing.to(memory_format=torch.channels_last)


def undecided(layer: Any) -> Any:
    """In evaluation mode, its gate random: the positions spread over all experts."""
    for linear in (m for m in layer.gate.modules() if isinstance(m, nn.Linear)):
        nn.init.normal_(linear.weight, std=0.2)
    return channels_last(layer).eval()


class FullAttention(nn.Module):
    """The layer of :class:`RoutingAttention2d` with attention of every position to every other one."""

    def __init__(self, layer: RoutingAttention2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        tokens = layer.norm(x.permute(0, 2, 3, 1).flatten(1, 2))
        q, k, v = (t.unflatten(2, (layer.num_heads, -1)).transpose(1, 2) for t in layer.qkv(tokens).chunk(3, 2))
        y = layer.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + y.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


def attention_cases() -> Iterator[Case]:
    """4 of 64 regions of a map against all of it."""
    for channels, side in ((256, 64), (64, 64)):
        x = channels_last(torch.randn(1, channels, side, side))
        layer = RoutingAttention2d(channels, region=8, top_k=4).eval()
        full = FullAttention(layer)
        what = f'RoutingAttention2d {channels}, {side}x{side}'
        case = f'4 of {(side // 8) ** 2} regions'
        yield Case(what, case, lambda x=x, m=layer: m(x), 'all (SDPA)', lambda x=x, m=full: m(x), 1 / 3 if side == 64 else None)


def query_cases() -> Iterator[Case]:
    """RetinaNet R18 with P2, all of it deployed: a tenth of the tiles of P2 against all of P2."""
    cfg = get_config('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py').model
    cfg.backbone.init_cfg = None
    cfg.neck.update(start_level=0, num_outs=6)
    cfg.bbox_head.update(type='SparseQueryRetinaHead')
    cfg.bbox_head.anchor_generator.strides = [4, 8, 16, 32, 64, 128]
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg)
    model.init_weights()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_var, 0.5, 2)
    model = deploy(model.eval())
    size, head = 512, model.bbox_head
    sample = DetDataSample(
        metainfo=dict(
            img_shape=(size, size),
            ori_shape=(size, size),
            pad_shape=(size, size),
            batch_input_shape=(size, size),
            scale_factor=(1.0, 1.0),
        )
    )
    images = channels_last(torch.randn(1, 3, size, size))
    with torch.no_grad():
        features = tuple(level.clone() for level in model.extract_feat(images))
    own = type(head.query_gate).logits
    tiles = -(-features[0].shape[2] // head.tile)

    def at(keep: float | None, call):
        def run():
            if keep is None:
                head.query_gate.logits = own
                head.query_gate.set_threshold(-torch.inf)
            else:
                mask = some_tiles(tiles, keep)[None].float() - 0.5
                head.query_gate.set_threshold(0.0)
                head.query_gate.logits = lambda x: own(head.query_gate, x).mul_(0).add_(mask)
            return call()

        return run

    def whole():
        return model.predict(images, [sample])

    def head_alone():
        return head.predict(features, [sample])

    def convolutions(keep):
        def run():
            if keep is None:
                return head(features)
            kept = some_tiles(tiles, keep)
            head.query_gate.cell_logits(features[1])
            return head.sparse_level(features[0], kept), [head.forward_single(level) for level in features[1:]]

        return run

    for keep, target in ((0.1, 0.4), (0.25, None), (0.5, None)):
        yield Case('SparseQuery R18 512, head', f'{keep:g} of P2', convolutions(keep), 'dense', convolutions(None), target)
    for keep in (0.1, 0.25):
        yield Case('SparseQuery R18 512, head to boxes', f'{keep:g} of P2', at(keep, head_alone), 'dense', at(None, head_alone))
    for keep, target in ((0.1, 1 / 1.5), (0.25, None), (0.5, None)):
        yield Case('SparseQuery R18 512, detector', f'{keep:g} of P2', at(keep, whole), 'dense', at(None, whole), target)


#: what --rows may name
ROWS = {'moe': moe_cases, 'attention': attention_cases, 'query': query_cases}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rows', nargs='+', choices=list(ROWS), default=list(ROWS))
    parser.add_argument('--repeats', type=number(1), default=10, help='timed rounds')
    parser.add_argument('--warmup', type=number(0), default=2, help='rounds before them')
    parser.add_argument('--threads', type=number(1), default=2, help='CPU threads of torch')
    parser.add_argument('--json', type=Path, help='write the rows there')
    return parser.parse_args()


def main():
    args = parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    MMLogger.get_instance('benchmark_tokens', log_level='ERROR')
    with one_line_errors():
        report_pairs((case for name in args.rows for case in ROWS[name]()), args)


if __name__ == '__main__':
    main()

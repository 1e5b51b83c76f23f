"""Gates, layers that route positions, and a head that queries, in a training of two processes without unused parameters."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_skip_blocks import resnet
from test_sparse_query import detector, images
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mmkerneldna.layers import MoEConv2d
from mmkerneldna.layers.routed import collect_losses, routed_layers
from mmkerneldna.routing import PositionFFN2d, PositionMoE2d, RoutingAttention2d, skip_blocks, sparse_blocks


def positions():
    return nn.Sequential(
        PositionMoE2d(4, 8, num_experts=4),
        RoutingAttention2d(8, region=2, top_k=2),
        PositionFFN2d(8, 16, num_experts=4, top_k=2),
        PositionMoE2d(8, 8, num_experts=4, gate=dict(type='TreeRouter')),
        MoEConv2d(8, 4, 3, num_experts=2, gate=dict(type='TreeRouter')),
    )


def blocks():
    """Two backbones whose gates are undecided, so that two processes skip other blocks."""
    nets = [skip_blocks(resnet(norm_eval=False), 0.5), sparse_blocks(resnet(norm_eval=False), 0.5, tile=8)]
    for net in nets:
        net.train()
        for gate in net.routing_gates.values():
            nn.init.zeros_((gate.fc2 if hasattr(gate, 'fc2') else gate.fc).bias)
    return nn.ModuleList(nets)


class WithLosses(nn.Module):
    """Adds the layers' own losses inside of forward, as the hook does."""

    def __init__(self):
        super().__init__()
        self.positions, self.blocks = positions(), blocks()

    def forward(self, maps, pictures):
        with collect_losses(routed_layers(self)) as totals:
            loss = self.positions(maps).square().mean() + sum(y.mean() for net in self.blocks for y in net(pictures))
            return loss + sum(totals().values())


def _work(rank, folder):
    torch.set_num_threads(1)
    limit = timedelta(minutes=5)  # a lost process is an error, not a wait for ever
    dist.init_process_group('gloo', f'file://{folder}/rendezvous', rank=rank, world_size=2, timeout=limit)
    try:
        torch.manual_seed(0)
        ours = DistributedDataParallel(WithLosses())
        whole = DistributedDataParallel(detector().train())
        torch.manual_seed(rank)
        for _ in range(2):  # the second step raises where a parameter was left out in the first
            ours(torch.randn(1, 4, 6, 6), torch.randn(1 + rank, 3, 33, 40)).backward()
            data = whole.module.data_preprocessor(images(1, 64, 64), True)
            loss, _ = whole.module.parse_losses(whole(**data, mode='loss'))
            loss.backward()
        for parameter in [*ours.parameters(), *whole.module.bbox_head.parameters()]:
            if parameter.requires_grad:
                mean = parameter.grad.clone()
                dist.all_reduce(mean)
                torch.testing.assert_close(mean / 2, parameter.grad)
        dist.barrier()  # one that leaves first would keep the other waiting
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason='torch is built without gloo')
def test_two_processes(tmp_path):
    mp.spawn(_work, (str(tmp_path),), nprocs=2)

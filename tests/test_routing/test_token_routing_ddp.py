"""Layers that route positions, and a head that queries, in a training of two processes without unused parameters."""

import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_sparse_query import detector, images
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mmkerneldna.layers import MoEConv2d
from mmkerneldna.layers.routed import collect_losses, routed_layers
from mmkerneldna.routing import PositionFFN2d, PositionMoE2d, RoutingAttention2d


def net():
    return nn.Sequential(
        PositionMoE2d(4, 8, num_experts=4),
        RoutingAttention2d(8, region=2, top_k=2),
        PositionFFN2d(8, 16, num_experts=4, top_k=2),
        PositionMoE2d(8, 8, num_experts=4, gate=dict(type='TreeRouter')),
        MoEConv2d(8, 4, 3, num_experts=2, gate=dict(type='TreeRouter')),
    )


class WithLosses(nn.Module):
    """Adds the balance losses inside of forward, as the hook does."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x):
        with collect_losses(routed_layers(self.net)) as totals:
            return self.net(x).square().mean() + sum(totals().values())


def _work(rank, port):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    torch.manual_seed(0)
    ours = DistributedDataParallel(WithLosses())
    whole = DistributedDataParallel(detector().train())
    torch.manual_seed(rank)
    for _ in range(2):  # the second step raises where a parameter was left out in the first
        ours(torch.randn(1, 4, 6, 6)).backward()
        data = whole.module.data_preprocessor(images(1, 64, 64), True)
        loss, _ = whole.module.parse_losses(whole(**data, mode='loss'))
        loss.backward()
    for parameter in [*ours.parameters(), *whole.module.bbox_head.parameters()]:
        mean = parameter.grad.clone()
        dist.all_reduce(mean)
        torch.testing.assert_close(mean / 2, parameter.grad)
    dist.destroy_process_group()


def test_two_processes():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    mp.spawn(_work, (port,), nprocs=2)

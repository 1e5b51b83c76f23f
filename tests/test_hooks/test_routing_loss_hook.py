"""Training with gates, trees and experts goes on from a saved state as if it had not stopped."""

import copy
from types import SimpleNamespace

import pytest
import torch
from mmdet.models.backbones import ResNet
from torch import nn

from mmkerneldna.hooks import RoutingLossHook
from mmkerneldna.hooks.step_seed_hook import seed_all
from mmkerneldna.layers import MoEConv2d, routed_layers
from mmkerneldna.routing import PositionFFN2d, PositionMoE2d, skip_blocks, sparse_blocks
from mmkerneldna.routing.query_gate import QueryGate

STEPS, STOP = 8, 3
TREE = dict(num_experts=4, gate=dict(type='TreeRouter'))


def resnet():
    return ResNet(depth=18, base_channels=4, num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(1,), norm_eval=False)


class Querying(nn.Module):
    """A gate that learns from boxes, as a head calls it."""

    def __init__(self):
        super().__init__()
        self.query_gate = QueryGate(3, cells=2, stride=8, small=32.0, threshold=0.01)

    def forward(self, x):
        return self.query_gate.query_loss(x, [torch.tensor([[4.0, 4, 16, 12]])] * len(x))


NETS = {
    'SkipBlocks': lambda: skip_blocks(resnet(), 0.25),
    'SparseBlocks, tiles': lambda: sparse_blocks(resnet(), 0.25, tile=8),
    'SparseBlocks, positions': lambda: sparse_blocks(resnet(), 0.25, tile=1),
    'trees': lambda: nn.Sequential(
        MoEConv2d(3, 4, 3, **TREE), PositionMoE2d(4, 4, **TREE), nn.ReLU(), PositionFFN2d(4, 8, **TREE), PositionMoE2d(4, 2)
    ),
    'SparseQuery': Querying,
}


class Training:
    """A net with its optimizer, under the hook, as a run has it."""

    def __init__(self, kind, seed):
        torch.manual_seed(seed)
        self.net = NETS[kind]()
        self.net.train()  # upstream backbones return None
        for gate in getattr(self.net, 'routing_gates', {}).values():
            nn.init.zeros_((gate.fc2 if hasattr(gate, 'fc2') else gate.fc).bias)  # else none closes in so few steps
        self.net.loss = self._losses
        self.optimizer = torch.optim.AdamW(self.net.parameters(), 0.02)

    def _losses(self, images):
        y = self.net(images)
        return dict(loss_task=y[0].square().mean() if isinstance(y, tuple) else y.square().mean())

    def run(self, start):
        """From a step to the end; yields before each step."""
        hook = RoutingLossHook()
        runner = SimpleNamespace(model=self.net, iter=start, max_iters=STEPS)
        hook.before_train(runner)
        for runner.iter in range(start, STEPS):
            yield runner.iter
            seed_all(3, 0, runner.iter)
            hook.before_train_iter(runner, runner.iter)
            self.optimizer.zero_grad()
            sum(self.net.loss(torch.randn(2, 3, 64, 64)).values()).backward()
            self.optimizer.step()
        hook.after_train(runner)

    def state(self):
        return copy.deepcopy((self.net.state_dict(), self.optimizer.state_dict()))

    def restore(self, state):
        self.net.load_state_dict(state[0])
        self.optimizer.load_state_dict(state[1])


def annealed(net):
    return {path: (vars(m).get('target'), vars(m).get('hardness')) for path, m in routed_layers(net).items()}


@pytest.mark.parametrize('kind', NETS)
def test_stopped_and_resumed(kind):
    whole, resumed = Training(kind, 0), Training(kind, 1)
    states = [whole.state() for _ in whole.run(0)]
    resumed.restore(states[STOP])  # targets and leaves are between their ends
    list(resumed.run(STOP))
    ends = [training.state()[0] for training in (whole, resumed)]
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())
    assert annealed(whole.net) == annealed(resumed.net)
    running = [key for key in ends[0] if key.rpartition('.')[2] in ('rate', 'share')]
    assert running and any(not torch.equal(states[STOP][0][key], ends[0][key]) for key in running)

"""Gates that decide whether something is computed, per image or per position.

Hard decisions in inference, Gumbel-sigmoid with a straight-through gradient in training, and a target rate: Convolutional
Networks with Adaptive Inference Graphs, Veit and Belongie, ECCV 2018, https://arxiv.org/abs/1711.11503; per position:
Dynamic Convolutions: Exploiting Spatial Sparsity for Faster Inference, Verelst and Tuytelaars, CVPR 2020,
https://arxiv.org/abs/1912.03203

Letters: N batch, C channels, H W map, T side of a tile, h = ceil(H / T), w = ceil(W / T).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from ..layers.drop_in import at_least_fp32
from ..layers.routed import Routed, is_written

#: logit that a gate starts with: it keeps 95 % in training, so that a net starts near the one without gates
OPEN = 3.0
#: positions per side that an image is pooled over: a grid of these says as much of the whole map, and reads little of it
SAMPLES = 16
#: the same per tile
TILE_SAMPLES = 4
#: part of a training after which the keep rate has come down from 1 to its target
ANNEALED = 0.5
#: step of the running keep rate that is logged: it looks back over some 20 batches
RATE_STEP = 0.05


def gumbel_keep(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Draws 0 or 1, 1 with probability ``sigmoid(logits)``; backward as if it were the soft draw.

    The difference of two Gumbel variables is logistic, so one uniform draw per decision is enough.

    Args:
        logits: any shape.
        temperature: of the soft draw ``sigmoid((logits + noise) / temperature)``.
    """
    uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
    noisy = logits + uniform.log() - (1 - uniform).log()
    soft = (noisy / temperature).sigmoid()
    return (noisy > 0).to(soft.dtype) + (soft - soft.detach())  # the sum of the bracket is exactly zero


def check_keep(keep: float) -> float:
    """A keep rate as a float.

    Raises:
        UsageError: it does not lie in (0, 1].
    """
    if isinstance(keep, bool) or not isinstance(keep, (int, float)) or not 0 < keep <= 1:
        raise UsageError(f'keep={keep!r} must lie in (0, 1]: the part that is computed, 1 for all')
    return float(keep)


class KeepGate(Routed):
    """Base of the gates: from a feature map to what is kept.

    A subclass defines :meth:`logits`. Kept is what has a logit above :attr:`threshold`, which starts at 0 and is moved by
    :func:`.keep.set_keep`; at minus infinity (keep 1) the logits are not even computed.

    The loss is one for all gates of a model, ``(mean keep probability - target)^2``, weighted by :attr:`cost`: which gate
    saves is up to the training. The target comes down from 1 to ``keep`` over the first half of the training.

    Args:
        keep (float): target of the keep rate, in (0, 1].
        cost (float): of what the gate decides on, in any unit common to the gates of a model.

    Attributes:
        threshold (Tensor): of the logits, a buffer.
        rate (Tensor): running part that was kept in training, a buffer.
        always_open (bool): whether the threshold is minus infinity.
        seen (list | None): logits of the calls in inference, while :func:`.keep.decisions` records.

    Raises:
        UsageError: ``keep`` outside (0, 1].
    """

    loss_name, loss_weight, rate_name = 'keep_rate', 2.0, 'keep_rate'
    threshold: Tensor
    rate: Tensor

    def __init__(self, keep: float, cost: float = 1.0) -> None:
        super().__init__()
        self.keep, self.cost = check_keep(keep), cost
        self.target = 1.0
        self.register_buffer('threshold', torch.zeros(()))
        self.register_buffer('rate', torch.ones(()))
        self.always_open = False
        self.seen: list[Tensor] | None = None
        self.full: Tensor | None = None  # (N,), images for which all is computed in this training step
        self._forced = False

    def logits(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 1, h, w), at least fp32."""
        raise NotImplementedError

    def init_weights(self) -> None:
        """A gate that starts open."""
        raise NotImplementedError

    def set_threshold(self, value: float) -> None:
        """Keep what has a logit above ``value``."""
        self.threshold.fill_(value)
        self.always_open = value == -math.inf

    def draw(self, x: Tensor) -> Tensor:
        """The mask of a training step, (N, 1, h, w) of 0 and 1, with a gradient."""
        logits = self.logits(x)
        self.note(logits)
        mask = gumbel_keep(logits)
        if self.full is not None and len(self.full) == len(mask):
            mask = torch.where(self.full.view(-1, 1, 1, 1), 1.0, mask)
        if self.collects and mask.numel():
            self.rate.lerp_((logits.detach() > self.threshold).float().mean().to(self.rate.dtype), RATE_STEP)
        return mask

    def decide(self, x: Tensor) -> Tensor | None:
        """What is kept in inference, (N, 1, h, w) of bool; None for everything."""
        if self._forced or (self.always_open and self.seen is None):
            return None
        logits = self.logits(x)
        if self.seen is not None:
            self.seen.append(logits)
        return logits > self.threshold

    def anneal(self, progress: float) -> None:
        """Move the target from 1 to ``keep``."""
        self.target = 1 - (1 - self.keep) * min(1.0, progress / ANNEALED)

    def rates(self) -> dict[str, float]:
        """The running keep rate."""
        return {'': self.rate.item()}

    @classmethod
    def total_loss(cls, layers: Sequence[Any]) -> Tensor:
        """``(mean keep probability - mean target)^2`` over all gates that were called."""
        called = [gate for gate in layers if gate._collected]
        costs = sum(gate.cost for gate in called)
        if not called or not costs:
            return layers[0].threshold.new_zeros(())
        probabilities = [torch.stack([_probability(*facts) for facts in gate._collected]).mean() for gate in called]
        rate = torch.stack([gate.cost * p for gate, p in zip(called, probabilities)]).sum() / costs
        target = sum(gate.cost * gate.target for gate in called) / costs
        return (rate - target).square()

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.always_open = self.threshold.item() == -math.inf if not self.threshold.is_meta else False

    def extra_repr(self) -> str:
        return f'keep={self.keep:g}'


def _probability(logits: Tensor) -> Tensor:
    return logits.sigmoid().mean() if logits.numel() else logits.sum()


class ImageGate(KeepGate):
    """One decision per image: pooled features -> normalised -> hidden -> ReLU -> a logit.

    The features are averaged over a grid of at most :data:`SAMPLES` positions per side (a large map is not read in whole),
    and normalised over the channels, as they are of any size.

    Args:
        channels (int): C.
        keep, cost: see :class:`KeepGate`.
        hidden (int): width of the hidden layer.
    """

    def __init__(self, channels: int, keep: float, cost: float = 1.0, hidden: int = 16) -> None:
        super().__init__(keep, cost)
        self.fc1, self.fc2 = nn.Linear(channels, hidden), nn.Linear(hidden, 1)
        self.init_weights()

    def init_weights(self) -> None:
        """A gate that starts open, little moved by what it sees."""
        nn.init.kaiming_normal_(self.fc1.weight, nonlinearity='relu')
        nn.init.zeros_(self.fc1.bias)
        nn.init.normal_(self.fc2.weight, std=0.05)
        nn.init.constant_(self.fc2.bias, OPEN)

    def logits(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 1, 1, 1)."""
        features = F.layer_norm(_grid_mean(x), (self.fc1.in_features,)).to(self.fc1.weight.dtype)
        return at_least_fp32(self.fc2(self.fc1(features).relu()))[:, :, None, None]


def _grid_mean(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C), at least fp32, over a grid of at most :data:`SAMPLES` positions per side."""
    height, width = x.shape[2:]
    steps = (height + SAMPLES - 1) // SAMPLES, (width + SAMPLES - 1) // SAMPLES
    if not is_written():
        return at_least_fp32(x[:, :, :: steps[0], :: steps[1]]).mean((2, 3))
    rows, columns = (torch.arange(side, device=x.device) % step == 0 for side, step in zip((height, width), steps))
    x = at_least_fp32(x)
    grid = (rows[:, None] & columns).to(x.dtype)  # a step that goes with the size can't be written
    return (x * grid).sum((2, 3)) / grid.sum()


class PositionGate(KeepGate):
    """One decision per position, or per tile of T x T positions: a 1x1 convolution on the map, averaged over each tile.

    Of a large tile a grid of :data:`TILE_SAMPLES` positions per side is read.

    Args:
        channels (int): C.
        keep, cost: see :class:`KeepGate`.
        tile (int): T; 1 for single positions.

    Raises:
        UsageError: ``tile`` below 1.
    """

    def __init__(self, channels: int, keep: float, cost: float = 1.0, tile: int = 1) -> None:
        super().__init__(keep, cost)
        if isinstance(tile, bool) or not isinstance(tile, int) or tile < 1:
            raise UsageError(f'tile={tile!r} must be a whole number of positions, at least 1')
        self.tile = tile
        self.fc = nn.Linear(channels, 1)
        self.init_weights()

    def init_weights(self) -> None:
        """A gate that starts open, little moved by what it sees."""
        nn.init.normal_(self.fc.weight, std=0.02)
        nn.init.constant_(self.fc.bias, OPEN)

    def logits(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 1, h, w)."""
        step = self.tile // TILE_SAMPLES if self.tile % TILE_SAMPLES == 0 else 1
        tile = self.tile // step
        samples = F.max_pool2d(x, 1, step) if is_written() else x[:, :, ::step, ::step]
        logits = at_least_fp32(self.fc(samples.permute(0, 2, 3, 1).to(self.fc.weight.dtype))).permute(0, 3, 1, 2)
        if tile == 1 or not x.numel():
            return logits
        return F.avg_pool2d(logits, tile, ceil_mode=True, count_include_pad=False)

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, tile={self.tile}'


class GateBank(nn.ModuleDict):
    """The gates of a backbone by name; a backbone that initialises its layers leaves them as they should start."""

    def init_weights(self) -> None:
        """Initialise every gate."""
        for gate in self.values():
            gate.init_weights()

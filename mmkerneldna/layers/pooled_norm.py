"""The norms inside a layer's gate or attention, on (N, C, H, W): whatever the batch, and whatever the net does to its norms.

Pooled maps, (N, C, 1, 1): BatchNorm behind a global pool sees N values per channel, so at N = 1 torch refuses to train: the
most frequent complaint about ODConv, and dense prediction trains at one image per GPU as a matter of course.

Frozen norms: ``norm_eval=True``, mmdet's default, puts every norm of a backbone into evaluation mode, for their statistics
come from a pretrained net. Those inside a freshly swapped layer come from nowhere: mean 0, variance 1. Their layer is no norm,
so ``norm_eval`` leaves its own flag alone (a frozen stage does not), and a norm in evaluation mode inside a layer in training
mode estimates its statistics over its first :data:`CALIBRATION_BATCHES` batches, then keeps them, as its neighbours do. It
normalises by them as constants: the two images of a common batch are too few for statistics of their own.
"""

import torch
import torch.distributed as dist
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from ..modules import running_stats

#: Training batches whose statistics are averaged where a net freezes its norms. A norm that has seen as many is left alone, so
#: that a checkpoint of a trained layer keeps its statistics.
CALIBRATION_BATCHES = 100


def build_pooled_norm(norm_cfg: dict | None, channels: int) -> nn.Module:
    """Build the norm layer for (N, channels, 1, 1), identity for ``None``.

    Raises:
        ValueError: an instance norm, which has nothing to normalise over in a 1x1 map.
    """
    if norm_cfg is None:
        return nn.Identity()
    norm = build_norm_layer(norm_cfg, channels)[1]
    if isinstance(norm, _InstanceNorm):
        raise ValueError(f"norm_cfg={norm_cfg} can't normalise a 1x1 map: use BN, SyncBN, LN, GN or None")
    return norm


def pooled_norm(norm: nn.Module, x: Tensor, training: bool = False) -> Tensor:
    """Apply ``norm`` to pooled features, or to maps.

    A BatchNorm that trains on fewer than two values per channel normalises by its running statistics, as constants, and
    then moves them by its momentum towards the value it saw (mean) and its squared distance from the mean (variance). One
    without running statistics has nothing to go by: of a single value it leaves its bias.

    Args:
        norm (nn.Module): from :func:`build_pooled_norm`.
        x (Tensor): (N, C, H, W), N may be 0; a LayerNorm takes (N, C, 1, 1) alone.
        training (bool): the mode of the layer that ``norm`` belongs to. Where it trains and ``norm`` does not, statistics
            are estimated, see above.

    Returns:
        Tensor: (N, C, H, W).
    """
    if isinstance(norm, nn.LayerNorm):
        return norm(x.flatten(1)).view_as(x)
    if not isinstance(norm, _BatchNorm):
        return norm(x)
    if norm.running_mean is None:
        return norm(x) if _values(x) != 1 else _bias_alone(norm, x)
    if not norm.training:
        return _calibrated(norm, x) if training and (_values(x) or _synchronised(norm)) else norm(x)
    if _values(x) < 2 and not _synchronised(norm):
        return _single_value_batch_norm(norm, x)
    return norm(x)


def _values(x: Tensor) -> int:
    """Number of values per channel."""
    return x.shape[0] * x.shape[2] * x.shape[3]


def _synchronised(norm: nn.Module) -> bool:
    return isinstance(norm, nn.SyncBatchNorm) and dist.is_initialized() and dist.get_world_size() > 1


def _bias_alone(norm: _BatchNorm, x: Tensor) -> Tensor:
    y = x * 0  # the gradient of a value less its own mean
    return y if norm.bias is None else y + norm.bias.to(x.dtype).view(-1, 1, 1)


def _single_value_batch_norm(norm: _BatchNorm, x: Tensor) -> Tensor:
    out = _by_running_stats(norm, x)
    if len(x):
        seen = _count_batch(norm)
        momentum = seen.reciprocal() if norm.momentum is None else norm.momentum
        _move_running_stats(norm, *_moments(norm, x), True, momentum)
    return out


def _count_batch(norm: _BatchNorm) -> Tensor:
    """Count one more; returns how many the norm has seen."""
    assert norm.num_batches_tracked is not None  # as there are running statistics
    return norm.num_batches_tracked.add_(1)


def _calibrated(norm: _BatchNorm, x: Tensor) -> Tensor:
    seen = _count_batch(norm)
    # weighted so that the running statistics are the average over all batches; a tensor, for no CPU waits for it
    weight = seen.reciprocal() * (seen <= CALIBRATION_BATCHES)
    mean, var = _moments(norm, x)
    if isinstance(norm, nn.SyncBatchNorm) and _synchronised(norm):
        mean, var = _over_processes(norm, mean, var, _values(x))
    _move_running_stats(norm, mean, var, _values(x) == 1 and not _synchronised(norm), weight)
    return _by_running_stats(norm, x)


def _by_running_stats(norm: _BatchNorm, x: Tensor) -> Tensor:
    # copies: a layer that is used twice moves the statistics that the first backward pass still needs
    mean, var = (stats.clone() for stats in running_stats(norm))
    return nn.functional.batch_norm(x, mean, var, norm.weight, norm.bias, False, 0.0, norm.eps)


@torch.no_grad()
def _moments(norm: _BatchNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance per channel; zeros of an empty batch."""
    running_mean, running_var = running_stats(norm)
    if not _values(x):
        return torch.zeros_like(running_mean), torch.zeros_like(running_var)
    var, mean = torch.var_mean(x.detach().to(running_mean.dtype), (0, 2, 3), correction=0)
    return mean, var


@torch.no_grad()
def _over_processes(norm: nn.SyncBatchNorm, mean: Tensor, var: Tensor, values: int) -> tuple[Tensor, Tensor]:
    sums = torch.cat([mean, var + mean.square(), torch.ones_like(mean[:1])]) * values
    dist.all_reduce(sums, group=norm.process_group)
    mean, square = (sums[:-1] / sums[-1].clamp(min=1)).chunk(2)
    return mean, square - mean.square()


@torch.no_grad()
def _move_running_stats(norm: _BatchNorm, mean: Tensor, var: Tensor, single: bool, weight) -> None:
    """Mix the statistics of a batch into the running ones, which count for ``1 - weight``.

    The variance of a mixture is the mean of the variances plus that of the means. A single value has no variance: its
    squared distance from the running mean stands for it.
    """
    running_mean, running_var = running_stats(norm)
    distance = (mean - running_mean).square()
    spread = distance if single else var + (1 - weight) * distance
    running_var.lerp_(spread, _as_weight(weight, spread))
    running_mean.lerp_(mean, _as_weight(weight, mean))


def _as_weight(weight, like: Tensor):
    return weight.to(like) if isinstance(weight, Tensor) else weight

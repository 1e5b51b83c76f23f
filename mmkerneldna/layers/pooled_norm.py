"""Normalise globally pooled features, (N, C, 1, 1), whatever the batch.

BatchNorm behind a global pool sees N values per channel, so at N = 1 torch refuses to train: the most frequent complaint
about ODConv, and dense prediction trains at one image per GPU as a matter of course.
"""
from typing import Optional

import torch
import torch.distributed as dist
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm


def build_pooled_norm(norm_cfg: Optional[dict], channels: int) -> nn.Module:
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


def pooled_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """Apply ``norm`` to pooled features.

    A BatchNorm that trains on fewer than two values per channel normalises by its running statistics, as constants, and
    then moves them by its momentum towards the value it saw (mean) and its squared distance from the mean (variance).

    Args:
        norm (nn.Module): from :func:`build_pooled_norm`.
        x (Tensor): (N, C, 1, 1); N may be 0 or 1.

    Returns:
        Tensor: (N, C, 1, 1).
    """
    if isinstance(norm, nn.LayerNorm):
        return norm(x.flatten(1)).view_as(x)
    if isinstance(norm, _BatchNorm) and norm.training and x.shape[0] < 2 and not _synchronised(norm):
        return _single_value_batch_norm(norm, x)
    return norm(x)


def _synchronised(norm: nn.Module) -> bool:
    return isinstance(norm, nn.SyncBatchNorm) and dist.is_initialized() and dist.get_world_size() > 1


def _single_value_batch_norm(norm: _BatchNorm, x: Tensor) -> Tensor:
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    out = nn.functional.batch_norm(x, mean, var, norm.weight, norm.bias, False, 0.0, norm.eps)
    if norm.track_running_stats and x.shape[0] == 1:
        _move_running_stats(norm, x.detach().flatten().to(mean.dtype))
    return out


@torch.no_grad()
def _move_running_stats(norm: _BatchNorm, value: Tensor) -> None:
    norm.num_batches_tracked.add_(1)
    momentum = 1.0 / norm.num_batches_tracked.item() if norm.momentum is None else norm.momentum
    norm.running_var.lerp_((value - norm.running_mean).square(), momentum)
    norm.running_mean.lerp_(value, momentum)

"""``plan=dict(type='redundancy', budget=..., checkpoint=...)``: the plan of least predicted damage, as a config asks for it."""

import os
from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..modules import running_stats
from ..sharing import SharingPlan, SharingPlanError, register_policy
from .images import FolderImages
from .redundancy import BATCHES
from .redundancy_plan import redundancy_plan
from .source import Source, read_source
from .start import Start


@register_policy('redundancy')
def redundancy_policy(
    module: nn.Module,
    budget: float,
    checkpoint: Source | None = None,
    images: str | os.PathLike | Iterable[Tensor] | None = None,
    size: tuple[int, int] = (224, 224),
    grow: bool = False,
    across_stages: bool = True,
    reduction: int = 4,
    residual_rank: int = 0,
    spatial_scale: bool = True,
    batches: int = BATCHES,
) -> SharingPlan:
    """A plan by :func:`redundancy_plan`, with the weights of a dense checkpoint.

    Args:
        module (nn.Module): the plan is for it; its own weights are read if there is no checkpoint, and never changed.
        budget (float): largest part of the parameters to keep, between 0 and 1.
        checkpoint: dense weights of the same family, what :func:`mmkerneldna.derive.derive` takes.
        images: a folder of images, or batches of preprocessed ones.
        size (tuple[int, int]): H, W of the crops from a folder.
        grow (bool): accept a module that is deeper than the checkpoint, and so slower. Its extra blocks are identities.
        across_stages, reduction, residual_rank, spatial_scale, batches: as for :func:`redundancy_plan`.

    Raises:
        SharingPlanError: no trained weights, a deeper module without ``grow``, or what :func:`redundancy_plan` refuses.
        DeriveError: a checkpoint that does not fit, or images that can't be used.
    """
    trained = module if checkpoint is None else with_weights(module, checkpoint, grow)
    if checkpoint is None and _is_fresh(module):
        raise SharingPlanError(
            f"dict(type='redundancy', ...) needs trained weights, and the norms of {type(module).__name__} "
            'have seen no image yet: name a dense checkpoint by checkpoint=FILE, or give a trained module'
        )
    if isinstance(images, (str, os.PathLike)):
        images = FolderImages(os.fspath(images), trained, (size[0], size[1]))
    return redundancy_plan(
        trained,
        budget,
        images,
        across_stages=across_stages,
        reduction=reduction,
        residual_rank=residual_rank,
        spatial_scale=spatial_scale,
        batches=batches,
    )


def with_weights(module: nn.Module, checkpoint: Source, grow: bool = False) -> nn.Module:
    """A copy of ``module`` with dense weights.

    Raises:
        DeriveError: they don't fit.
        SharingPlanError: ``module`` is deeper, and may not be.
    """
    start = Start(module, read_source(checkpoint))
    if start.identities and not grow:
        extra = ', '.join(sorted(start.identities))
        raise SharingPlanError(
            f'{type(module).__name__} has blocks that the checkpoint lacks ({extra} would be identities): '
            'for the same latency put the plan around the static net, '
            "dict(type='KernelDNA', module=..., plan=...), or accept the growth by grow=True"
        )
    return start.twin


def _is_fresh(module: nn.Module) -> bool:
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    return bool(norms) and all((mean == 0).all() and (var == 1).all() for mean, var in map(running_stats, norms))

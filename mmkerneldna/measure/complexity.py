"""Multiply-accumulates and parameters of a backbone, a whole detector or a whole segmenter.

One GMAC is 1e9 multiply-accumulates of convolutions and matrix products; element-wise work, normalisation, pooling and
NMS are not counted. torch's counter reports 2 per multiply-accumulate, mmengine's and fvcore's "flops" are
multiply-accumulates plus BN; in the unit used here ResNet-18 has 1.814 and ResNet-50 4.089 at 224, as the papers state.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..anatomy import is_exported
from ..layers import ChildConv2d
from ..modules import count_parameters
from .undisturbed import undisturbed
from .workload import Workload, tensor_call


@dataclass(frozen=True)
class Complexity:
    """Size of a model.

    Attributes:
        gmacs (float): of one image, batch 1.
        unique_params_m (float): millions; a kernel that several convs use counts once.
        deployed_params_m (float): millions, after every conv got a kernel of its own; see :func:`deployed_params`.
    """

    gmacs: float
    unique_params_m: float
    deployed_params_m: float


def count_macs(call: Callable[[], Any]) -> int:
    """Multiply-accumulates of everything ``call`` runs, by torch operator, whatever module or function it is in."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() // 2


def deployed_params(model: nn.Module) -> int:
    """Elements of all parameters after deployment; of a model that is not deployed yet, before BN is folded.

    A child conv gets the modulated kernel as its own: it adds the borrowed kernel once more and gives up
    ``filter_scale`` and ``spatial_scale``. Its gate stays, it depends on the input. A deployed model has no child any more: a
    kernel that several of its convs share counts once.
    """
    children = {m for m in model.modules() if isinstance(m, ChildConv2d)}
    adapters = {m for child in children for m in child.modules()}
    others = {p for m in model.modules() if m not in adapters for p in m.parameters(recurse=False)}
    return sum(p.numel() for p in others) + sum(child.deployed_size() for child in children)


def measure_complexity(model: nn.Module, size: tuple[int, int], proposals: int | None = None) -> Complexity:
    """Complexity of a model at one image of ``size``.

    Detectors and segmenters run in mm's ``mode='tensor'`` with their own padding: backbone, neck and heads. A two-stage
    detector's heads count for as many proposals as its RPN yields on a random image, mask heads for mmdet's 100.

    Args:
        model (nn.Module): a backbone (any module from (1, 3, H, W)), an mmdet detector or an mmseg segmenter.
        size (tuple[int, int]): H, W of the image.
        proposals (int, optional): as in :class:`Workload`, in place of what the RPN yields.

    Examples:
        >>> measure_complexity(KDNAResNet(depth=18), (224, 224))
        Complexity(gmacs=2.27647488, unique_params_m=8.727798, deployed_params_m=17.5728)
    """
    device = next((p.device for p in model.parameters()), torch.device('cpu'))
    workload = Workload(batch=1, size=size, device=str(device), proposals=proposals)
    with undisturbed(model):
        macs = count_macs(tensor_call(model, workload))
    return Complexity(macs / 1e9, count_parameters(model) / 1e6, deployed_params(model) / 1e6)


def complexity_row(model: nn.Module, size: tuple[int, int], proposals: int | None = None) -> dict[str, float]:
    """:func:`measure_complexity` as the cells of a row; a model that is an exported file knows its own."""
    if is_exported(model):
        return cast(Any, model).complexity_row(size, proposals)
    return dict(vars(measure_complexity(model, size, proposals)))


def deployed_row(model: nn.Module) -> dict[str, float]:
    """The cell of a row that tells what a deployed model holds itself, in place of what its original would."""
    return {} if is_exported(model) else dict(deployed_params_m=deployed_params(model) / 1e6)

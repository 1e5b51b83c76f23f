"""Shared kernels and per-parameter optimizer settings."""
from typing import Mapping

from torch import nn

from ..layers import ChildConv2d
from .plan import SharingPlanError


def check_paramwise(model: nn.Module, optim_wrapper: Mapping) -> None:
    """Refuse a ``paramwise_cfg`` that would put a shared kernel into two parameter groups.

    mmengine makes one group per parameter *name*; a shared kernel has two. torch then says only that "some parameters
    appear in more than one parameter group".

    Args:
        model (nn.Module): the built model.
        optim_wrapper (Mapping): the config's ``optim_wrapper``.

    Raises:
        SharingPlanError: names a kernel and the setting that mends it.
    """
    paramwise = optim_wrapper.get('paramwise_cfg')
    if not paramwise or paramwise.get('bypass_duplicate'):
        return
    for path, module in model.named_modules():
        if isinstance(module, ChildConv2d) and module.tied:
            raise SharingPlanError(
                f'optim_wrapper.paramwise_cfg={dict(paramwise)} would put the kernel that {path} borrows into two '
                'parameter groups: add bypass_duplicate=True to it (--cfg-options '
                'optim_wrapper.paramwise_cfg.bypass_duplicate=True)')

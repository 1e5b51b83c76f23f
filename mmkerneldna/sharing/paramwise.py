"""Shared kernels and per-parameter optimizer settings."""

from collections.abc import Mapping, MutableMapping

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from .plan import SharingPlanError
from .ties import find_ties, owners_only

DEFAULT, OURS = 'DefaultOptimWrapperConstructor', 'SharedKernelOptimWrapperConstructor'


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class SharedKernelOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor, by which a shared kernel gets the settings of its owner.

    mmengine goes through the modules in their order and would meet the kernel first, or a second time, under a child's name.
    """

    def add_params(self, params, module, prefix='', is_dcn_module=None) -> None:
        """As in mmengine; at the root, without the kernels that children borrow."""
        if prefix:
            super().add_params(params, module, prefix, is_dcn_module)
            return
        with owners_only(module):
            super().add_params(params, module, prefix, is_dcn_module)


def use_owner_settings(model: nn.Module, optim_wrapper: MutableMapping) -> None:
    """Choose :class:`SharedKernelOptimWrapperConstructor` for a model with shared kernels, where a config has a
    ``paramwise_cfg`` and names no constructor.

    Args:
        model (nn.Module): the built model.
        optim_wrapper (MutableMapping): the config's ``optim_wrapper``, changed in place.

    Raises:
        SharingPlanError: as :func:`check_paramwise`.
    """
    if optim_wrapper.get('paramwise_cfg') and 'constructor' not in optim_wrapper and find_ties(model):
        optim_wrapper['constructor'] = OURS
    check_paramwise(model, optim_wrapper)


def check_paramwise(model: nn.Module, optim_wrapper: Mapping) -> None:
    """Refuse a ``paramwise_cfg`` by which mmengine's own constructor would treat a shared kernel wrongly.

    It makes one group per parameter *name*, and a shared kernel has two. torch then says only that "some parameters appear in
    more than one parameter group"; with ``bypass_duplicate`` the first name's settings count, usually the child's.

    Args:
        model (nn.Module): the built model.
        optim_wrapper (Mapping): the config's ``optim_wrapper``.

    Raises:
        SharingPlanError: names a kernel and the setting that fixes it.
    """
    paramwise = optim_wrapper.get('paramwise_cfg')
    if not paramwise or optim_wrapper.get('constructor', DEFAULT) != DEFAULT:
        return
    for tie in find_ties(model):
        keys = [_custom_key(f'{path}.weight', paramwise) for path in (tie.path, tie.parent)]
        if not paramwise.get('bypass_duplicate'):
            trouble = f'would put the kernel that {tie.path} borrows into two parameter groups'
        elif keys[0] != keys[1]:
            trouble = (
                f'would treat the kernel that {tie.path} borrows by custom_keys {keys[0]!r}, and not by {keys[1]!r} '
                f'like its owner {tie.parent}'
            )
        else:
            continue
        raise SharingPlanError(
            f"optim_wrapper.paramwise_cfg={dict(paramwise)} {trouble}: set constructor='{OURS}' "
            f'(--cfg-options optim_wrapper.constructor={OURS})'
        )


def _custom_key(name: str, paramwise: Mapping) -> str | None:
    """The key of ``custom_keys`` that mmengine takes for this parameter: the longest one contained in its name."""
    keys = sorted(sorted(paramwise.get('custom_keys', {})), key=len, reverse=True)
    return next((key for key in keys if key in name), None)

"""Apply a sharing plan to a built module, all or nothing."""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import nn

from .._registry import build_inner
from ..layers import ChildConv2d
from ..modules import is_plain_conv, replace
from .auto import auto_plan
from .paper_plans import get_plan
from .plan import Borrowing, SharingPlan, SharingPlanError
from .policies import PLAN_POLICIES
from .ties import keep_ties

PlanLike = SharingPlan | str | Mapping[str, Any]


def resolve_plan(module: nn.Module, plan: PlanLike) -> SharingPlan:
    """Turn whatever a config or a call may state into a plan.

    Args:
        module (nn.Module): the module the plan is for; the automatic policy looks at it.
        plan: a :class:`SharingPlan`; a name of :data:`PLANS` or ``'auto'``; ``dict(type='auto', ...)`` with the
            arguments of :func:`auto_plan`, or another policy of :data:`PLAN_POLICIES` with its own; a mapping {child path:
            parent path}, see :meth:`SharingPlan.from_mapping`.

    Raises:
        SharingPlanError: none of these, an unknown name, or a policy that does not fit.
    """
    if isinstance(plan, SharingPlan):
        return plan
    if isinstance(plan, str):
        return auto_plan(module) if plan == 'auto' else get_plan(plan)
    if not isinstance(plan, Mapping):
        raise SharingPlanError(
            f"a plan is a SharingPlan, a name, dict(type='auto', ...) or a mapping of child to parent paths, got {plan!r}"
        )
    if 'type' in plan:
        return _policy_plan(module, dict(plan))
    return SharingPlan.from_mapping(plan)


def _policy_plan(module: nn.Module, policy: dict[str, Any]) -> SharingPlan:
    kind = policy.pop('type')
    if kind not in PLAN_POLICIES:
        raise SharingPlanError(f'the policy type of a plan must be {" or ".join(map(repr, PLAN_POLICIES))}, got {kind!r}')
    make = PLAN_POLICIES[kind]
    try:
        inspect.signature(make).bind(module, **policy)
    except TypeError as error:
        raise SharingPlanError(f'dict(type={kind!r}, ...): {error}') from None
    return make(module, **policy)


def share_kernels(
    module: nn.Module,
    plan: PlanLike,
    gate_cfg: dict | None = None,
    residual_rank: int | None = None,
    spatial_scale: bool | None = None,
) -> nn.Module:
    """Let convolutions of ``module`` borrow kernels, in place.

    The plan is checked as a whole first; on any error the module is as it was.

    Args:
        module (nn.Module): any built module.
        plan: what :func:`resolve_plan` takes.
        gate_cfg (dict, optional): ``norm_cfg`` of all input gates (default BN) and a ``reduction`` that overrides the
            plan's.
        residual_rank (int, optional): rank of all children's low-rank residuals, in place of the plan's.
        spatial_scale (bool, optional): whether children have a spatial scale, in place of what the plan says.

    Returns:
        nn.Module: ``module`` itself.

    Raises:
        SharingPlanError: unknown path, not a plain conv, different kernel shape or groups, or a conv that shares already.
    """
    resolved, gate_options = _with_gates(resolve_plan(module, plan), gate_cfg)
    resolved = resolved if residual_rank is None else resolved.with_residual_rank(residual_rank)
    resolved = resolved if spatial_scale is None else resolved.with_spatial_scale(spatial_scale)
    convs = {path: _plain_conv(module, path, resolved.name) for b in resolved.borrowings for path in (b.child, b.parent)}
    for b in resolved.borrowings:
        _check_fit(b, convs[b.child], convs[b.parent], resolved.name)
    _check_distinct(resolved, convs)
    _check_free(module, resolved)
    children = {
        b.child: ChildConv2d.from_conv(convs[b.child], convs[b.parent], **b.options(), **gate_options)
        for b in resolved.borrowings
    }
    for path, child in children.items():
        replace(module, convs[path], child)
    keep_ties(module)
    print_log(resolved.describe(module), logger='current')
    return module


def _with_gates(plan: SharingPlan, gate_cfg: dict | None) -> tuple[SharingPlan, dict[str, Any]]:
    gate_cfg = dict(gate_cfg or {})
    unknown = set(gate_cfg) - {'reduction', 'norm_cfg'}
    if unknown:
        raise SharingPlanError(f"gate_cfg takes 'reduction' and 'norm_cfg', got {sorted(unknown)}")
    if 'reduction' in gate_cfg:
        plan = plan.with_reduction(gate_cfg.pop('reduction'))
    return plan, gate_cfg


def _plain_conv(module: nn.Module, path: str, plan: str) -> nn.Conv2d:
    try:
        conv = module.get_submodule(path)
    except AttributeError:
        known = [name for name, m in module.named_modules() if is_plain_conv(m)]
        near = difflib.get_close_matches(path, known, n=3, cutoff=0.0)
        raise SharingPlanError(
            f"plan '{plan}': {type(module).__name__} has no {path}; nearest convs: {', '.join(near) or 'none at all'}"
        ) from None
    if isinstance(conv, ChildConv2d):
        raise SharingPlanError(f"plan '{plan}': {path} borrows its kernel already; a plan is applied once")
    if not is_plain_conv(conv):
        raise SharingPlanError(f"plan '{plan}': {path} is a {type(conv).__name__}; only a plain Conv2d can share its kernel")
    if 'weight' not in conv._parameters:
        raise SharingPlanError(
            f"plan '{plan}': {path} computes its kernel at run time (pruning, spectral_norm, ...); only a "
            'kernel that is a parameter can be shared'
        )
    return conv


def _check_fit(b: Borrowing, child: nn.Conv2d, parent: nn.Conv2d, plan: str) -> None:
    ours, theirs = (tuple(child.weight.shape), child.groups), (tuple(parent.weight.shape), parent.groups)
    if ours != theirs:
        raise SharingPlanError(
            f"plan '{plan}': {b.child} has a kernel {ours[0]} in {ours[1]} group(s), {b.parent} one of {theirs[0]} in "
            f'{theirs[1]}; a child needs a parent with the same out_channels, in_channels, kernel size and groups'
        )
    if not 1 <= b.reduction <= child.in_channels:
        raise SharingPlanError(
            f"plan '{plan}': reduction={b.reduction} of {b.child} must lie between 1 and its {child.in_channels} input channels"
        )
    rank = min(child.out_channels, child.weight[0].numel())
    if not 0 <= b.residual_rank <= rank:
        raise SharingPlanError(
            f"plan '{plan}': residual_rank={b.residual_rank} of {b.child} must lie between 0 and {rank}, "
            f'the rank of a kernel of {ours[0]}'
        )
    if child.weight.device != parent.weight.device or child.weight.dtype != parent.weight.dtype:
        raise SharingPlanError(
            f"plan '{plan}': {b.child} is on {child.weight.device} in {child.weight.dtype}, {b.parent} "
            f'on {parent.weight.device} in {parent.weight.dtype}; move the module as a whole first'
        )


def _check_distinct(plan: SharingPlan, convs: dict[str, nn.Conv2d]) -> None:
    """A conv may hang in several places; a plan may name it by one of them, in one role."""
    first: dict[int, str] = {}
    for path, conv in convs.items():
        other = first.setdefault(id(conv), path)
        if path != other and (path in plan.children or other in plan.children):
            raise SharingPlanError(
                f"plan '{plan.name}': {other} and {path} are one conv, which hangs in both places: name it once"
            )


def _check_free(module: nn.Module, plan: SharingPlan) -> None:
    """A conv that lends its kernel since an earlier plan can't turn into a child."""
    lending = {id(m.parent) for m in module.modules() if isinstance(m, ChildConv2d)}
    for child in plan.children:
        if id(module.get_submodule(child)) in lending:
            raise SharingPlanError(f"plan '{plan.name}': {child} is the parent of a conv that shares already")


@MODELS.register_module(name='KernelDNA')
def build_shared(
    module: dict,
    plan: PlanLike = 'auto',
    gate_cfg: dict | None = None,
    residual_rank: int | None = None,
    spatial_scale: bool | None = None,
    **injected,
) -> nn.Module:
    """Share kernels in any module built from a config.

    ``neck=dict(type='KernelDNA', module=dict(type='FPN', ...), plan=...)`` returns the inner module itself: no wrapper, no
    key prefix. What mmdet or mmseg inject into a head's config (``train_cfg``, ``test_cfg``, ...) goes on to it.

    Args:
        module (dict): config of the inner module.
        plan: what :func:`resolve_plan` takes, paths relative to the inner module.
        gate_cfg, residual_rank, spatial_scale: as in :func:`share_kernels`.

    Returns:
        nn.Module: the inner module with shared kernels.
    """
    return share_kernels(build_inner(module, injected), plan, gate_cfg, residual_rank, spatial_scale)

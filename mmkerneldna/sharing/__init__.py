"""Kernel sharing: plans as data, and the function that applies one to a module."""

from .auto import auto_plan
from .paper_plans import PLANS, get_plan
from .paramwise import SharedKernelOptimWrapperConstructor, check_paramwise, use_owner_settings
from .plan import Borrowing, SharingPlan, SharingPlanError
from .policies import PLAN_POLICIES, register_policy
from .share import build_shared, resolve_plan, share_kernels
from .ties import Tie, find_ties, keep_ties

__all__ = [
    'PLANS',
    'PLAN_POLICIES',
    'Borrowing',
    'SharedKernelOptimWrapperConstructor',
    'SharingPlan',
    'SharingPlanError',
    'Tie',
    'auto_plan',
    'build_shared',
    'check_paramwise',
    'find_ties',
    'get_plan',
    'keep_ties',
    'register_policy',
    'resolve_plan',
    'share_kernels',
    'use_owner_settings',
]

"""Kernel sharing: plans as data, and the function that applies one to a module."""
from .auto import auto_plan
from .paramwise import check_paramwise
from .paper_plans import PLANS, get_plan
from .plan import Borrowing, SharingPlan, SharingPlanError
from .share import build_shared, resolve_plan, share_kernels

__all__ = [
    'PLANS', 'Borrowing', 'SharingPlan', 'SharingPlanError', 'auto_plan', 'build_shared', 'check_paramwise', 'get_plan',
    'resolve_plan', 'share_kernels'
]

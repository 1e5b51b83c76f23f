"""Policies that make a sharing plan for a module, by the name that ``plan=dict(type=..., ...)`` gives.

A policy may need what stands above this part of the package (trained weights, images): it registers itself from there.
"""

from collections.abc import Callable

from .plan import SharingPlan

Policy = Callable[..., SharingPlan]  # (module, **arguments) -> plan, paths relative to the module

PLAN_POLICIES: dict[str, Policy] = {}


def register_policy(name: str) -> Callable[[Policy], Policy]:
    """Decorator: let ``dict(type=name, ...)`` call this function with the module and the other entries."""

    def register(policy: Policy) -> Policy:
        PLAN_POLICIES[name] = policy
        return policy

    return register

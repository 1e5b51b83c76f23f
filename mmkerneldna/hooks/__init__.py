"""Hooks of mmengine."""

from .checkpoint_fit_hook import CheckpointFitHook
from .cost_hook import CostHook
from .deploy_hook import DeployHook
from .moe_loss_hook import MoELossHook
from .routing_loss_hook import RoutingLossHook
from .step_seed_hook import StepSeedHook
from .temperature_hook import TemperatureHook

__all__ = ['CheckpointFitHook', 'CostHook', 'DeployHook', 'MoELossHook', 'RoutingLossHook', 'StepSeedHook', 'TemperatureHook']

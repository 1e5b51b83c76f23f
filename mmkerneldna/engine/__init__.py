"""Hooks and run-time pieces on top of mmengine."""
from .checkpoint_fit_hook import CheckpointFitHook
from .moe_loss_hook import MoELossHook
from .repeatable import PlacedSampler, StepSeedHook, make_repeatable
from .temperature_hook import TemperatureHook

__all__ = ['CheckpointFitHook', 'MoELossHook', 'PlacedSampler', 'StepSeedHook', 'TemperatureHook', 'make_repeatable']

"""Hooks and run-time pieces on top of mmengine."""
from .checkpoint_fit_hook import CheckpointFitHook
from .repeatable import PlacedSampler, StepSeedHook, make_repeatable

__all__ = ['CheckpointFitHook', 'PlacedSampler', 'StepSeedHook', 'make_repeatable']

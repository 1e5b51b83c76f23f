"""Conditional computation: what an image does not need is not run."""

from .gates import ImageGate, KeepGate, PositionGate, gumbel_keep
from .keep import decisions, keep_all, keep_gates, set_keep

__all__ = ['ImageGate', 'KeepGate', 'PositionGate', 'decisions', 'gumbel_keep', 'keep_all', 'keep_gates', 'set_keep']

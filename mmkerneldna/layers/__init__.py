"""Convolution layers, one paper idea per file."""
from .child_conv import ChildConv2d, modulate_kernel
from .input_gate import InputGate
from .pooled_norm import build_pooled_norm, pooled_norm

__all__ = ['ChildConv2d', 'InputGate', 'build_pooled_norm', 'modulate_kernel', 'pooled_norm']

"""Convolution layers, one paper idea per file."""

from .child_conv import ChildConv2d
from .cond_conv import CondConv2d
from .dcd_conv import DCDConv2d
from .dy_conv import DyConv2d
from .expert_conv import ExpertConv2d
from .fd_conv import FDConv2d
from .gated_conv import modulate_kernel
from .input_gate import InputGate
from .kernel_warehouse import KWConv2d
from .mixture import mixture_conv2d
from .moe_conv import MoEConv2d
from .od_conv import ODConv2d
from .per_sample import per_sample_conv2d
from .pooled_norm import build_pooled_norm, pooled_norm
from .routed import Routed, collect_losses, routed_layers
from .se_conv import SEConv2d
from .swap import SwapError, build_dynamic_convs, swap_convs

__all__ = [
    'ChildConv2d',
    'CondConv2d',
    'DCDConv2d',
    'DyConv2d',
    'ExpertConv2d',
    'FDConv2d',
    'InputGate',
    'KWConv2d',
    'MoEConv2d',
    'ODConv2d',
    'Routed',
    'SEConv2d',
    'SwapError',
    'build_dynamic_convs',
    'build_pooled_norm',
    'collect_losses',
    'mixture_conv2d',
    'modulate_kernel',
    'per_sample_conv2d',
    'pooled_norm',
    'routed_layers',
    'swap_convs',
]

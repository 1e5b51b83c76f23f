"""Conditional computation: what an image does not need is not run."""

from .gates import ImageGate, KeepGate, PositionGate, gumbel_keep
from .keep import decisions, keep_all, keep_gates, set_keep
from .position_ffn import PositionFFN2d
from .position_moe import PositionMoE2d
from .query_gate import QueryGate
from .routing_attention import RoutingAttention2d
from .routing_neck import RoutingNeck
from .skip_blocks import skip_blocks
from .sparse_blocks import sparse_blocks
from .sparse_query import SparseQueryFCOSHead, SparseQueryGFLHead, SparseQueryRetinaHead
from .swap_ffns import build_position_ffns, swap_ffns
from .tree_router import TreeRouter, record_leaves

__all__ = [
    'ImageGate',
    'KeepGate',
    'PositionFFN2d',
    'PositionGate',
    'PositionMoE2d',
    'QueryGate',
    'RoutingAttention2d',
    'RoutingNeck',
    'SparseQueryFCOSHead',
    'SparseQueryGFLHead',
    'SparseQueryRetinaHead',
    'TreeRouter',
    'build_position_ffns',
    'decisions',
    'gumbel_keep',
    'keep_all',
    'keep_gates',
    'record_leaves',
    'set_keep',
    'skip_blocks',
    'sparse_blocks',
    'swap_ffns',
]

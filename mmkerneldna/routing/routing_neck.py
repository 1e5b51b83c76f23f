"""RoutingNeck: bi-level routing attention on levels of a feature pyramid."""

from collections.abc import Sequence

from mmengine.registry import MODELS
from torch import Tensor, nn

from .routing_attention import RoutingAttention2d


@MODELS.register_module()
class RoutingNeck(nn.Module):
    """A neck behind a neck that gives some levels a :class:`.RoutingAttention2d` of their own::

        neck=[dict(type='FPN', ...), dict(type='RoutingNeck', in_channels=256, levels=[1, 2])]

    Args:
        in_channels (int): of every level.
        levels (Sequence[int]): places of the levels in the tuple that comes in.
        options: of :class:`.RoutingAttention2d`.

    Raises:
        ValueError: no levels, one twice or below 0; in ``forward``: one that the pyramid does not have.
    """

    def __init__(self, in_channels: int, levels: Sequence[int], **options) -> None:
        super().__init__()
        if not levels or min(levels) < 0 or len(set(levels)) < len(levels):
            raise ValueError(f'levels={levels!r} of RoutingNeck must be different places in the pyramid, from 0')
        self.levels = list(levels)
        self.attention = nn.ModuleDict({str(level): RoutingAttention2d(in_channels, **options) for level in levels})

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Tuple of (N, C, H, W) -> the same shapes."""
        if max(self.levels) >= len(features):
            raise ValueError(f'levels={self.levels} of RoutingNeck: the neck before it has {len(features)} levels')
        return tuple(self.attention[str(i)](feature) if i in self.levels else feature for i, feature in enumerate(features))

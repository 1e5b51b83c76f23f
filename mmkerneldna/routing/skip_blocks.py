"""SkipBlocks: residual blocks that an image does not need are not called.

Convolutional Networks with Adaptive Inference Graphs, Veit and Belongie, ECCV 2018, https://arxiv.org/abs/1711.11503;
SkipNet, Wang et al., ECCV 2018, https://arxiv.org/abs/1711.09485

    backbone=dict(type='SkipBlocks', keep=0.5, module=dict(type='ResNet', depth=50, ...))
"""

from collections.abc import Sequence

from mmengine.registry import MODELS
from torch import Tensor, nn

from .._registry import build_inner
from ..layers.drop_in import in_format_of
from .gates import ImageGate, KeepGate
from .stages import GatedStage, choose_blocks, install


class SkipStage(GatedStage):
    """A stage whose blocks are called for the images that need them."""

    def compute(self, gate: KeepGate, blocks: Sequence[nn.Module], x: Tensor, keep: Tensor) -> Tensor:
        """A block is not called where no image needs it, and called on those that do otherwise."""
        (block,) = blocks
        images = keep.flatten().nonzero().flatten()
        if len(images) == len(x):
            return block(x)
        if not len(images):
            return x
        y = block(in_format_of(x, x.index_select(0, images)))
        return x.to(y.dtype).index_copy(0, images, y)


def skip_blocks(
    backbone: nn.Module,
    keep: float,
    stages: Sequence[int] | None = None,
    blocks: Sequence[str] | None = None,
    full: float = 0.25,
    hidden: int = 16,
) -> nn.Module:
    """Let the residual blocks of ``backbone`` be skipped per image, in place.

    A block with a gate has an identity shortcut and is not the first of its stage. Names of parameters stay, so a checkpoint
    of the plain net loads; a new gate is open. The gates are ``backbone.routing_gates``.

    Args:
        backbone (nn.Module): a ResNet (mmdet's, mmseg's, ``KDNAResNet``, ResNeXt, ...), MobileNetV2 or ConvNeXt.
        keep (float): part of these blocks that training aims at, in (0, 1]; 1 for gates that only learn an order.
        stages: numbers of stages, from 0; all by default.
        blocks: paths of blocks (``'layer3.2'``) in place of all.
        full (float): part of the training images for which all blocks run, so that the net stays right at a keep rate of 1.
        hidden (int): width of the gates' hidden layer.

    Returns:
        nn.Module: ``backbone`` itself.

    Raises:
        UsageError: ``keep`` outside (0, 1], no residual blocks, a block that must always run, gates already there.
    """
    chosen = choose_blocks(backbone, stages, blocks, lambda block: '')

    def gate(channels: int, count: int) -> ImageGate:
        return ImageGate(channels, keep, cost=count, hidden=hidden)

    return install(backbone, chosen, gate, SkipStage, longest=1, full=full)


@MODELS.register_module(name='SkipBlocks')
def build_skip_blocks(
    module: dict,
    keep: float = 0.5,
    stages: Sequence[int] | None = None,
    blocks: Sequence[str] | None = None,
    full: float = 0.25,
    hidden: int = 16,
    **injected,
) -> nn.Module:
    """:func:`skip_blocks` of a backbone built from a config.

    Args:
        module (dict): config of the backbone.
        keep, stages, blocks, full, hidden: as in :func:`skip_blocks`.
    """
    return skip_blocks(build_inner(module, injected), keep, stages, blocks, full, hidden)

"""SparseBlocks: residual blocks that are computed where a gate says so, the identity elsewhere.

Dynamic Convolutions: Exploiting Spatial Sparsity for Faster Inference, Verelst and Tuytelaars, CVPR 2020,
https://arxiv.org/abs/1912.03203; tiles with a halo: SBNet, Ren et al., CVPR 2018, https://arxiv.org/abs/1801.02108

    backbone=dict(type='SparseBlocks', keep=0.5, tile=8, stages=(0, 1), module=dict(type='ResNet', depth=50, ...))
"""

from collections.abc import Sequence

from mmcv.cnn import ConvModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .._registry import build_inner
from ..errors import UsageError
from .gates import KeepGate, PositionGate
from .positions import compute_positions, is_known, why_unknown
from .stages import GatedStage, choose_blocks, install
from .tiles import compute_tiles, on_positions

#: sides of a decision
TILES = (1, 8, 16, 32)
#: homes of the convolutions that compute conv2d(x, weight, bias), packed or not
PLAIN_HOMES = ('torch.nn.modules.conv', 'mmcv.cnn.bricks.wrappers', 'mmkerneldna.deploy.packed')
#: leaves that compute every position by itself
POINTWISE = {
    *('ReLU', 'ReLU6', 'LeakyReLU', 'GELU', 'SiLU', 'Hardswish', 'Hardtanh', 'Identity', 'Dropout', 'DropPath'),
    *('Linear', 'LayerNorm', 'LN2d', 'LayerNorm2d'),
}


def why_not_local(block: nn.Module) -> str:
    """Why a block can't be computed in parts; '' if every position depends on a neighbourhood alone."""
    for module in block.modules():
        if hasattr(module, 'kernel_size') and not isinstance(module, ConvModule):
            if not isinstance(module, nn.Conv2d) or type(module).__module__ not in PLAIN_HOMES:
                return f'its {type(module).__name__} may look at the whole map'
            if module.stride != (1, 1) or module.padding_mode != 'zeros':
                return f'it has a {module}'
        elif not isinstance(module, _BatchNorm) and not any(module.children()) and type(module).__name__ not in POINTWISE:
            return f'its {type(module).__name__} may look at the whole map'
    return ''


def radius_of(block: nn.Module) -> int:
    """How far, in positions, a block looks at most."""
    return sum(
        max(d * (k - 1) // 2 for d, k in zip(m.dilation, m.kernel_size)) for m in block.modules() if isinstance(m, nn.Conv2d)
    )


class SparseStage(GatedStage):
    """A stage whose blocks are computed at kept positions, or in kept tiles."""

    _checked = False

    def on_map(self, gate: KeepGate, mask: Tensor, x: Tensor) -> Tensor:
        """(N, 1, h, w) -> (N, 1, H, W): each decision for all positions of its tile."""
        return on_positions(mask, gate.tile, x.shape[2:])  # type: ignore[arg-type]  # a PositionGate

    def compute(self, gate: KeepGate, blocks: Sequence[nn.Module], x: Tensor, keep: Tensor) -> Tensor:
        """By positions or by tiles; ``x`` is overwritten."""
        self._check(blocks)
        kept = int(keep.sum())
        if kept == 0:
            return x
        if kept == keep.numel():
            return self._all_mixed(gate, blocks, x, keep)
        if gate.tile == 1:
            return compute_positions(x, keep, blocks)
        halo = max(map(radius_of, blocks))
        y = compute_tiles(x, keep, gate.tile, halo, blocks)  # type: ignore[arg-type]
        return self._all_mixed(gate, blocks, x, keep) if y is None else y

    def _check(self, blocks: Sequence[nn.Module]) -> None:
        if not self._checked:
            for block in blocks:
                reason = why_not_local(block)
                if reason:
                    raise UsageError(
                        f'a {type(block).__name__} of SparseBlocks was changed after it was built: {reason}; put '
                        'SparseBlocks around what changes convolutions, which then leaves such blocks dense'
                    )
            self._checked = True


def sparse_blocks(
    backbone: nn.Module,
    keep: float,
    tile: int = 8,
    stages: Sequence[int] | None = None,
    blocks: Sequence[str] | None = None,
    run: int | None = None,
    full: float = 0.25,
) -> nn.Module:
    """Let residual blocks of ``backbone`` be computed in parts of the map, in place.

    Blocks that follow one another share a gate, which looks at the input of the first. Their output at a kept position is
    that of ``y = keep * block(x) + (1 - keep) * x`` computed densely, and so it is trained. Left dense are a stage's first
    block, one without identity shortcut, and one that looks at the whole map (KernelDNA's children, dynamic convolutions,
    squeeze-and-excitation). Names of parameters stay; a new gate is open.

    Args:
        backbone (nn.Module): a ResNet (mmdet's, mmseg's, ``KDNAResNet``, ...), MobileNetV2 or ConvNeXt.
        keep (float): part of the positions that training aims at, in (0, 1].
        tile (int): side of the square of positions that is decided on at once: 8, 16 or 32 are computed as a batch of tiles
            by the block itself; 1 by matrix products (ResNet's blocks and inverted residuals without extras). Which is
            fastest where is in docs/routing.md.
        stages: numbers of stages, from 0; all by default.
        blocks: paths of blocks (``'layer2.1'``) in place of all.
        run (int, optional): blocks behind one gate at most; all that follow one another by default.
        full (float): part of the training images that are computed everywhere, so that the net stays right at keep 1.

    Returns:
        nn.Module: ``backbone`` itself.

    Raises:
        UsageError: ``keep`` outside (0, 1], another tile, a ``run`` below 1, no block that fits, gates already there.
    """
    if tile not in TILES:
        raise UsageError(f'tile={tile!r} of SparseBlocks must be one of {TILES}')
    if run is not None and (isinstance(run, bool) or not isinstance(run, int) or run < 1):
        raise UsageError(f'run={run!r} must be a number of blocks, at least 1, or None')
    chosen = choose_blocks(backbone, stages, blocks, why_not_local)
    for path, names in chosen.items() if tile == 1 else ():
        for name in names:
            block = backbone.get_submodule(f'{path}.{name}')
            if not is_known(block):
                raise UsageError(f'tile=1 does not know {path}.{name}, {why_unknown(block)}; use a tile of 8, 16 or 32')

    def gate(channels: int, count: int) -> PositionGate:
        return PositionGate(channels, keep, cost=count, tile=tile)

    return install(backbone, chosen, gate, SparseStage, longest=run, full=full)


@MODELS.register_module(name='SparseBlocks')
def build_sparse_blocks(
    module: dict,
    keep: float = 0.5,
    tile: int = 8,
    stages: Sequence[int] | None = None,
    blocks: Sequence[str] | None = None,
    run: int | None = None,
    full: float = 0.25,
    **injected,
) -> nn.Module:
    """:func:`sparse_blocks` of a backbone built from a config.

    Args:
        module (dict): config of the backbone.
        keep, tile, stages, blocks, run, full: as in :func:`sparse_blocks`.
    """
    return sparse_blocks(build_inner(module, injected), keep, tile, stages, blocks, run, full)

"""KernelDNA ResNets: the upstream ResNet, the paper's depths and a sharing plan.

KernelDNA: Dynamic Kernel Sharing via Decoupled Naive Adapters, Huang et al., https://arxiv.org/abs/2503.23379
"""

from mmengine.registry import MODELS
from mmseg.models.backbones.resnet import BasicBlock, Bottleneck, ResNet

from ..sharing.paper_plans import get_plan
from ..sharing.share import PlanLike, resolve_plan
from .shared_backbone import SharedKernelBackbone


@MODELS.register_module()
class KDNAResNet(SharedKernelBackbone, ResNet):
    """ResNet whose later stages share kernels.

    Takes every argument of mmdet's and of mmseg's ResNet (the defaults are mmdet's) and returns feature maps of the same
    shapes. ``deep_stem=True`` makes it a V1c, with ``avg_down=True`` a V1d. Parameter names are upstream's; a child conv
    adds ``gate.*``, ``filter_scale`` and ``spatial_scale`` under its own name.

    ======  ===============  ==========================================================================
    depth   blocks           children
    ======  ===============  ==========================================================================
    18      2, 2, 3, 3       paper: stages 3, 4: one conv of every block
    34      3, 4, 7, 4       ours, by ResNet-18's rule
    50      3, 4, 7, 3       paper: 3x3 of blocks 1, 3, 5 of stage 3 and of block 1 of stage 4
    101     3, 4, 23, 3      ours, by ResNet-50's rule
    ======  ===============  ==========================================================================

    Args:
        depth (int): 18, 34, 50 or 101.
        sharing: ``'default'`` for the table above, ``None`` for the static net of the same depth (the fair baseline), or
            any plan that :func:`mmkerneldna.sharing.share_kernels` takes, paths relative to the backbone.
        gate_cfg (dict, optional): ``norm_cfg`` and ``reduction`` of the input gates.
        residual_rank (int, optional): rank of the children's low-rank residuals, in place of the plan's (0, the paper's).
        spatial_scale (bool, optional): False for children without a spatial scale.
        freeze_adapters (bool): let ``frozen_stages`` freeze gates and modulations as well.
        allow_frozen_parent (bool): accept a child in a live stage whose parent is frozen.
        stem_channels (int, optional): defaults to ``base_channels``.
        norm_eval (bool): norms in evaluation mode while training. Defaults to True, as in mmdet.
        **kwargs: of the upstream ResNet.

    Raises:
        ValueError: an unknown depth.
        SharingPlanError: a plan that does not fit, or a frozen parent of a live child.
    """

    arch_settings = {
        18: (BasicBlock, (2, 2, 3, 3)),
        34: (BasicBlock, (3, 4, 7, 4)),
        50: (Bottleneck, (3, 4, 7, 3)),
        101: (Bottleneck, (3, 4, 23, 3)),
    }

    def __init__(
        self,
        depth: int,
        sharing: PlanLike | None = 'default',
        gate_cfg: dict | None = None,
        residual_rank: int | None = None,
        spatial_scale: bool | None = None,
        freeze_adapters: bool = False,
        allow_frozen_parent: bool = False,
        stem_channels: int | None = None,
        base_channels: int = 64,
        norm_eval: bool = True,
        **kwargs,
    ) -> None:
        if depth not in self.arch_settings:
            raise ValueError(f'KDNAResNet has no depth {depth}; it has {", ".join(map(str, self.arch_settings))}')
        super().__init__(
            depth, stem_channels=stem_channels or base_channels, base_channels=base_channels, norm_eval=norm_eval, **kwargs
        )
        if sharing is not None:
            sharing = self._default_plan() if sharing == 'default' else resolve_plan(self, sharing)
        self._share(
            sharing,
            freeze_adapters,
            allow_frozen_parent,
            gate_cfg=gate_cfg,
            residual_rank=residual_rank,
            spatial_scale=spatial_scale,
        )

    def _default_plan(self):
        return get_plan(f'resnet{self.depth}').within([f'layer{i + 1}' for i in range(self.num_stages)])

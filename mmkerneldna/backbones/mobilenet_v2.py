"""KernelDNA MobileNetV2: the upstream net of any width and a sharing plan.

KernelDNA: Dynamic Kernel Sharing via Decoupled Naive Adapters, Huang et al., https://arxiv.org/abs/2503.23379
"""

from collections.abc import Sequence

from mmdet.models.backbones.mobilenet_v2 import MobileNetV2
from mmengine.registry import MODELS

from ..sharing.share import PlanLike, resolve_plan
from .shared_backbone import SharedKernelBackbone


@MODELS.register_module()
class KDNAMobileNetV2(SharedKernelBackbone, MobileNetV2):
    """MobileNetV2 whose 32-, 64-, 96- and 160-channel stages share their 1x1 kernels.

    In those stages every block but the first and the last borrows the expand conv (gate reduction 4) and the project conv
    (reduction 24) of the stage's last block; depthwise convs stay its own (paper; fact of the released code).

    Takes every argument of mmdet's MobileNetV2, and mmseg's ``strides`` and ``dilations``. The last 1x1 conv
    (``conv2``, 1280 channels) is built only if level 7 is among ``out_indices``: mmseg's heads don't read it, and
    parameters without a gradient stop distributed training.

    Args:
        widen_factor (float): width multiplier.
        sharing: ``'default'`` for the paper's plan, ``None`` for the static net, or any plan that
            :func:`mmkerneldna.sharing.share_kernels` takes, paths relative to the backbone.
        gate_cfg (dict, optional): ``norm_cfg`` and ``reduction`` of the input gates.
        residual_rank (int, optional): rank of the children's low-rank residuals, in place of the plan's (0, the paper's).
        spatial_scale (bool, optional): False for children without a spatial scale.
        freeze_adapters (bool): let ``frozen_stages`` freeze gates and modulations as well.
        allow_frozen_parent (bool): accept a child in a live stage whose parent is frozen.
        strides (Sequence[int], optional): of the first block of each of the 7 stages. Defaults to upstream's.
        dilations (Sequence[int], optional): of the depthwise conv of each stage's first block, as in mmseg.
        **kwargs: of the upstream MobileNetV2.

    Raises:
        ValueError: strides or dilations that are not 7 numbers.
        SharingPlanError: a plan that does not fit, or a frozen parent of a live child.
    """

    arch_settings: Sequence[Sequence[int]]

    def __init__(
        self,
        widen_factor: float = 1.0,
        sharing: PlanLike | None = 'default',
        gate_cfg: dict | None = None,
        residual_rank: int | None = None,
        spatial_scale: bool | None = None,
        freeze_adapters: bool = False,
        allow_frozen_parent: bool = False,
        strides: Sequence[int] | None = None,
        dilations: Sequence[int] | None = None,
        **kwargs,
    ) -> None:
        if strides is not None:
            # Read by the upstream constructor, hence before it.
            self.arch_settings = [[*row[:3], s] for row, s in zip(self.arch_settings, self._seven('strides', strides))]
        super().__init__(widen_factor, **kwargs)
        self._dilate(self._seven('dilations', dilations or (1,) * 7))
        if 7 not in self.out_indices:
            del self.conv2
            self.layers.remove('conv2')
        if sharing is not None:
            sharing = resolve_plan(self, 'mobilenet_v2' if sharing == 'default' else sharing)
        self._share(
            sharing,
            freeze_adapters,
            allow_frozen_parent,
            gate_cfg=gate_cfg,
            residual_rank=residual_rank,
            spatial_scale=spatial_scale,
        )

    @staticmethod
    def _seven(name: str, values: Sequence[int]) -> Sequence[int]:
        if len(values) != 7:
            raise ValueError(f'{name}={tuple(values)} must hold one number for each of the 7 stages')
        return values

    def _dilate(self, dilations: Sequence[int]) -> None:
        for i, dilation in enumerate(dilations):
            conv = getattr(self, f'layer{i + 1}')[0].depthwise_conv.conv
            conv.dilation, conv.padding = (dilation, dilation), (dilation, dilation)

    def _freeze_stages(self) -> None:
        if self.frozen_stages == 7 and 'conv2' not in self.layers:
            raise ValueError('frozen_stages=7 freezes conv2, which is not built without level 7 in out_indices')
        super()._freeze_stages()

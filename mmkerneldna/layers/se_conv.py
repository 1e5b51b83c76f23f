"""SEConv: a static kernel behind KernelDNA's input gate, the control that separates the gate from the sharing.

Gate: KernelDNA, Huang et al., https://arxiv.org/abs/2503.23379, in the form of squeeze and excitation, Hu et al.,
CVPR 2018, https://arxiv.org/abs/1709.01507
"""

from mmengine.registry import MODELS
from torch import Tensor, nn

from .drop_in import PaddingMode
from .expert_conv import hidden_channels
from .input_gate import InputGate
from .static_start import StaticStart


@MODELS.register_module()
class SEConv2d(StaticStart, nn.Conv2d):
    """``y = conv2d(g(x) * x, W)``: a child convolution of KernelDNA with a kernel of its own and no modulation.

    With the kernel of a static checkpoint it starts as the static convolution: the gate is one half for every input, and the
    kernel twice the static one.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: as in
            ``nn.Conv2d``.
        reduction (int): of the gate; at most ``in_channels`` is used of the default, so that a stem of 3 channels has a
            gate too. Defaults to 4 (KernelDNA).
        norm_cfg (dict, optional): norm of the gate.

    Raises:
        ValueError: ``reduction`` below 1 or larger than the channels (and 4).
    """

    # where KernelDNA and ODConv put theirs: the convolutions of the residual branches
    paper_patterns = {'ResNet': ['layer*.conv*'], 'MobileNetV2': ['layer*', 'conv2.*']}

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = 'zeros',
        reduction: int = 4,
        norm_cfg: dict | None = dict(type='BN'),
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        hidden_channels(in_channels, reduction, 4)  # refuses a reduction that is out of range
        self.gate = InputGate(in_channels, min(reduction, in_channels), norm_cfg, calibrate=True)
        self.init_weights()

    def init_weights(self) -> None:
        """Kaiming-normal kernel (fan out), zero bias, gate as its own."""
        nn.init.kaiming_normal_(self.weight, mode='fan_out', nonlinearity='relu')
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        self.gate.reset_parameters()

    def seed(self, kernel: Tensor, bias: Tensor | None) -> dict[str, Tensor | None]:
        """See :class:`.static_start.StaticStart`."""
        self.gate.make_neutral()
        return dict(weight=kernel * 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        return super().forward(x * self.gate(x))

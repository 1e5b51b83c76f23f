"""CondConv: kernels that are a sigmoid-weighted sum of experts.

CondConv: Conditionally Parameterized Convolutions for Efficient Inference, Yang et al., NeurIPS 2019,
https://arxiv.org/abs/1904.04971
"""

from mmengine.registry import MODELS
from torch import Tensor, nn

from .drop_in import PaddingMode
from .expert_conv import ExpertConv2d


def route(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Routing weights ``sigmoid(GlobalAveragePool(x) R)`` (paper, section 3).

    Args:
        x: (N, C_in, H, W).
        weight: R transposed, (n, C_in).
        bias: (n,).

    Returns:
        (N, n), each in (0, 1); they need not sum to one.
    """
    return nn.functional.linear(x.mean((2, 3)), weight, bias).sigmoid()


@MODELS.register_module()
class CondConv2d(ExpertConv2d):
    """``y = (a_1 W_1 + ... + a_n W_n) * x`` with ``a = sigmoid(linear(pool(x)))`` (paper, section 3).

    Every layer has its own routing; the paper's models share one routing among the layers of a block. The bias is
    static, for the formula has none.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: as in
            ``nn.Conv2d``.
        num_experts (int): n. Defaults to 8 (the paper).

    Raises:
        ValueError: ``num_experts`` below 1.
    """

    # Section 4.1: the last three residual blocks of a ResNet, the last six blocks of a MobileNet (and the classifier,
    # which a backbone has not).
    paper_patterns = {
        'ResNet': ['layer4.*.conv*'],
        'ResNet-18': ['layer3.1.conv*', 'layer4.*.conv*'],
        'MobileNetV2': ['layer5.[12].*', 'layer6.*', 'layer7.*'],
    }

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
        num_experts: int = 8,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, num_experts
        )
        self.routing = nn.Linear(in_channels, num_experts)
        self.static_gain = num_experts / 2
        self.init_weights()

    def init_weights(self) -> None:
        """Kaiming experts; a small routing, so that every expert starts with a weight near one half."""
        super().init_weights()
        nn.init.normal_(self.routing.weight, std=0.01)
        nn.init.zeros_(self.routing.bias)

    def make_neutral(self) -> None:
        """Route to experts in pairs of opposite logits: ``sigmoid(z) + sigmoid(-z)`` is one."""
        paired = self.num_experts // 2 * 2
        weight = self.routing.weight.detach()
        weight[1:paired:2] = -weight[0:paired:2]
        weight[paired:] = 0
        nn.init.zeros_(self.routing.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        return self.convolve(x, route(x, self.routing.weight, self.routing.bias), self.bias)

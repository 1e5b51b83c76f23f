"""The input gate of KernelDNA: dynamic routing of a child convolution's input.

KernelDNA: Dynamic Kernel Sharing via Decoupled Naive Adapters, Huang et al., https://arxiv.org/abs/2503.23379
"""

import torch.nn.functional as F
from mmengine.model import constant_init, kaiming_init
from torch import Tensor, nn

from .pooled_norm import build_pooled_norm, pooled_norm


class InputGate(nn.Module):
    """Scale per input channel, computed from the globally pooled input.

    Global average pool -> 1x1 conv to C / reduction, no bias -> norm -> ReLU -> 1x1 conv with bias -> sigmoid. With the
    default norm (BN) the gate also trains at a batch of one, see :mod:`.pooled_norm`.

    Args:
        channels (int): C, channels of the input.
        reduction (int): C is divided by it, rounded down, for the hidden width. Defaults to 4 (the paper).
        norm_cfg (dict, optional): norm of the hidden features: BN (the paper), SyncBN, LN, GN, or None.
        calibrate (bool): estimate the norm's statistics where a net freezes its norms alone, see :mod:`.pooled_norm`.
            Defaults to False: what covers the norms of a KernelDNA net covers those of its gates.

    Raises:
        ValueError: ``reduction`` below 1 or above ``channels``.
    """

    def __init__(
        self, channels: int, reduction: int = 4, norm_cfg: dict | None = dict(type='BN'), calibrate: bool = False
    ) -> None:
        super().__init__()
        if not 1 <= reduction <= channels:
            raise ValueError(f'reduction={reduction} of an input gate must lie between 1 and its {channels} channels')
        hidden = channels // reduction
        self.reduction, self.calibrate = reduction, calibrate
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=False)
        self.norm = build_pooled_norm(norm_cfg, hidden)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(hidden, channels, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Kaiming-normal (fan out) kernels and zero bias, so that every gate starts near one half."""
        for conv in (self.fc1, self.fc2):
            kaiming_init(conv)

    def make_neutral(self) -> None:
        """One half for every input."""
        constant_init(self.fc2, 0)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> scale in (0, 1), (N, C, 1, 1)."""
        hidden = self.fc1(F.adaptive_avg_pool2d(x, 1))
        return self.fc2(self.relu(pooled_norm(self.norm, hidden, self.calibrate and self.training))).sigmoid()

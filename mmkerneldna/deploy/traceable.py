"""What exporters can't follow in upstream's code, replaced by what they can."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..modules import slots


class MatrixAdaptivePool(nn.Module):
    """``nn.AdaptiveAvgPool2d`` to a few bins as two matrix products, for pyramid pooling of maps of any size.

    ONNX has no adaptive pooling unless the bins divide the map. Bin i of b covers floor(i L / b) to ceil((i + 1) L / b).
    """

    def __init__(self, bins: tuple[int, int]) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, bins)."""
        rows, columns = (self._shares(x.shape[axis], bins, x) for axis, bins in zip((2, 3), self.bins))
        return rows @ x @ columns.transpose(0, 1)

    @staticmethod
    def _shares(length: int, bins: int, like: Tensor) -> Tensor:
        index, i = torch.arange(length, device=like.device), torch.arange(bins, device=like.device)[:, None]
        start = torch.div(i * length, bins, rounding_mode='floor')
        end = torch.div((i + 1) * length + bins - 1, bins, rounding_mode='floor')
        return ((index >= start) & (index < end)).to(like.dtype) / (end - start)


def with_matrix_pools(module: nn.Module) -> nn.Module:
    """Replace, in place, adaptive pools that exporters can't write; to a single bin they can."""
    for owner, name, child in slots(module):
        if isinstance(child, nn.AdaptiveAvgPool2d):
            size = child.output_size
            height, width = size if isinstance(size, tuple) else (size, size)
            if (height, width) != (1, 1) and height is not None and width is not None:
                setattr(owner, name, MatrixAdaptivePool((height, width)))
    return module


@contextlib.contextmanager
def traceable_resize() -> Iterator[None]:
    """mmseg's ``resize`` turns sizes into Python integers, constants of whatever is traced; leave them symbolic."""
    from mmseg.models.utils import resize as original

    def resize(input, size=None, scale_factor=None, mode='nearest', align_corners=None, warning=True):
        return F.interpolate(input, size, scale_factor, mode, align_corners)

    users: list[Any] = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith('mmseg.') and vars(module).get('resize') is original
    ]
    for module in users:
        module.resize = resize
    try:
        yield
    finally:
        for module in users:
            module.resize = original

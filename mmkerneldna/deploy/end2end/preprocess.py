"""What the data preprocessor does at test time, as part of the graph: from a picture's bytes to the network's input."""

import torch.nn.functional as F
from torch import Tensor, nn

from ..export_error import ExportError


class Preprocess(nn.Module):
    """Channel swap, normalisation and padding of mmdet's and mmseg's data preprocessors.

    The padding comes after the normalisation, as there: ``pad_value`` is in normalised units.

    Args:
        preprocessor (nn.Module): of a detector or segmenter.

    Raises:
        ExportError: a preprocessor without the parts expected.
    """

    def __init__(self, preprocessor: nn.Module) -> None:
        super().__init__()
        self.swap = bool(getattr(preprocessor, '_channel_conversion', False))
        self.normalises = bool(getattr(preprocessor, '_enable_normalize', False))
        if self.normalises:
            self.register_buffer('mean', preprocessor.mean.detach().clone().float())
            self.register_buffer('std', preprocessor.std.detach().clone().float())
        test_cfg = getattr(preprocessor, 'test_cfg', None)
        if hasattr(preprocessor, 'test_cfg'):  # mmseg pads only if told to
            self.divisor, self.least = (test_cfg or {}).get('size_divisor') or 1, (test_cfg or {}).get('size')
            self.pad_value = preprocessor.pad_val
        else:
            if not hasattr(preprocessor, 'pad_size_divisor'):
                raise ExportError(
                    f'data preprocessor {type(preprocessor).__name__} has no pad_size_divisor: nothing known to export'
                )
            self.divisor, self.least, self.pad_value = preprocessor.pad_size_divisor, None, preprocessor.pad_value

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8, BGR -> (N, 3, H', W') float32."""
        x = images.float()
        if self.swap:
            x = x.flip(1)
        if self.normalises:
            x = (x - self.mean) / self.std
        height, width = x.shape[2], x.shape[3]
        if self.least is not None:
            down, right = _positive(self.least[0] - height), _positive(self.least[1] - width)
        elif self.divisor > 1:
            down, right = -height % self.divisor, -width % self.divisor
        else:
            return x
        return F.pad(x, (0, right, 0, down), value=self.pad_value)


def _positive(difference):
    """max(difference, 0) as arithmetic, which a trace follows: sizes may be symbols."""
    return (difference + abs(difference)) // 2

"""A segmenter from a picture's bytes to its label map."""

import torch.nn.functional as F
from torch import Tensor, nn

from ..export_error import ExportError
from .preprocess import Preprocess


class WholeSegmenter(nn.Module):
    """Preprocessing, network, resize to the picture's size, and the label of each pixel.

    Args:
        model (nn.Module): a deployed mmseg segmenter.

    Raises:
        ExportError: it infers by sliding windows.
    """

    task = 'segmentation'
    outputs = ('labels_map',)

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if model.test_cfg.get('mode', 'whole') != 'whole':
            raise ExportError(
                f"test_cfg.mode='{model.test_cfg['mode']}' tests by windows; a file takes whole images: "
                '--cfg-options model.test_cfg.mode=whole'
            )
        self.preprocess, self.model = Preprocess(model.data_preprocessor), model

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """(N, 3, H, W) uint8, BGR -> (N, H, W) int64."""
        x = self.preprocess(images)
        logits = self.model._forward(x, None)
        logits = F.interpolate(logits, x.shape[2:], mode='bilinear', align_corners=self.model.align_corners)
        logits = logits[:, :, : images.shape[2], : images.shape[3]]
        if logits.shape[1] > 1:
            return (logits.argmax(1),)
        return ((logits[:, 0].sigmoid() > self.model.decode_head.threshold).long(),)

"""Pictures of decision trees over positions: which leaf each position of a map came to."""

import numpy as np
import torch.nn.functional as F
from matplotlib import colormaps
from torch import Tensor

#: weight of the colours over the picture
OVERLAY = 0.55


def paint_leaves(picture: np.ndarray, leaves: Tensor, size: tuple[int, int]) -> np.ndarray:
    """The picture with each position in the colour of its leaf (matplotlib's tab20, in the order of the leaves).

    Args:
        picture: (H, W, 3), RGB, uint8; the net saw it scaled.
        leaves: (h w,), of one image, row by row.
        size: h, w.

    Returns:
        ndarray: as ``picture``.
    """
    colours = 255 * np.asarray(colormaps['tab20'].colors)  # type: ignore[attr-defined]
    place = F.interpolate(leaves.view(1, 1, *size).double(), picture.shape[:2])[0, 0].long().numpy()
    return ((1 - OVERLAY) * picture + OVERLAY * colours[place % len(colours)]).astype(np.uint8)

"""Which convolutions are nothing but their kernel."""
from mmcv.cnn.bricks.wrappers import Conv2d as EmptySafeConv2d
from torch import nn

# Types, not isinstance: a subclass with a forward of its own (deformable, weight-standardised, dynamic, child) is more.
PLAIN_CONVS = (nn.Conv2d, EmptySafeConv2d)


def is_plain_conv(module: nn.Module) -> bool:
    """Whether ``module`` computes conv2d(x, weight, bias) with its own attributes: it may share or be swapped or folded."""
    return type(module) in PLAIN_CONVS

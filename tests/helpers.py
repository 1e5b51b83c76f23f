"""What several test modules need."""

import os

import torch
from torch import nn

from mmkerneldna.layers import ChildConv2d


def randomise(module):
    """Everything that starts as 0 or 1 gets a value that shows when it is left out."""
    for child in module.modules():
        if isinstance(child, ChildConv2d):
            nn.init.normal_(child.filter_scale, std=0.3)
            if child.spatial_scale is not None:
                nn.init.normal_(child.spatial_scale, std=0.3)
            if child.residual_b is not None:
                nn.init.normal_(child.residual_b, std=0.3)
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            child.running_mean.normal_()
            child.running_var.uniform_(0.5, 2)
            nn.init.normal_(child.weight, 1, 0.3)
            nn.init.normal_(child.bias)
    return module


def conv_gmacs(net, size=224):
    """Multiply-accumulates of all convs, counted by hooks: output pixels x kernel size x C_in / groups x C_out."""
    total = []

    def count(conv, inputs, output):
        total.append(output[0, 0].numel() * conv.weight.numel())

    hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    return sum(total) / 1e9


def assert_same(outputs, expected, tolerance=1e-5):
    """Tensors that agree up to ``tolerance`` of the largest value of each."""
    outputs, expected = ([o] if torch.is_tensor(o) else list(o) for o in (outputs, expected))
    assert len(outputs) == len(expected) > 0
    for output, target in zip(outputs, expected):
        assert (output - target).abs().max() <= tolerance * target.abs().max()


def times_in(path, kernel):
    """How often the bytes of a kernel, as contiguous or as channels_last memory, are in a file."""
    content = path.read_bytes()
    return sum(content.count(layout.contiguous().numpy().tobytes()) for layout in (kernel, kernel.permute(0, 2, 3, 1)))


class Payload:
    """Unpickling it would create a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)

"""Start a dynamic layer as the static convolution whose kernel it is given: swap the convolutions, then load static weights.

A layer from scratch starts as its paper says, with random attention. That attention would distort a pretrained net's features
layer by layer, so where a static kernel is loaded, the attention starts neutral: the layer computes what the static one did,
and departs from it as it learns.
"""

import torch
from mmengine.logging import print_log
from torch import Tensor, nn


def kernel_shape(conv: nn.Module) -> tuple[int, int, int, int]:
    """Shape of a static convolution's kernel of this geometry, (C_out, C_in/g, k, k)."""
    return (conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size)


def holds_static(layer: nn.Module, state_dict: dict[str, Tensor], prefix: str) -> bool:
    """Whether ``state_dict`` has, in the place of ``layer``, a static convolution: its kernel, and nothing but a bias."""
    kernel = state_dict.get(f'{prefix}weight')
    if kernel is None or tuple(kernel.shape) != kernel_shape(layer):
        return False
    return not any(key.startswith(prefix) and key[len(prefix) :] not in ('weight', 'bias') for key in state_dict)


class StaticStart(nn.Module):
    """Before the convolution or ``nn.Module`` in the bases of a layer that :meth:`seed` starts from a static kernel."""

    def seed(self, kernel: Tensor, bias: Tensor | None) -> dict[str, Tensor | None]:
        """Make the attention neutral and give the layer's own form of the static weights.

        Args:
            kernel: (C_out, C_in/g, k, k).
            bias: (C_out,) or None.

        Returns:
            The entries of the layer's state dict that stand for them, by name.
        """
        raise NotImplementedError

    def no_static_start(self) -> str | None:
        """Why no setting of this layer is a given static convolution; None where one is."""
        return None

    @torch.no_grad()
    def start_as(self, kernel: Tensor, bias: Tensor | None = None) -> None:
        """Compute from now on what a static convolution does.

        Args:
            kernel: (C_out, C_in/g, k, k).
            bias: (C_out,) or None.
        """
        own = self.state_dict()
        for name, value in self.seed(kernel, bias).items():
            if value is not None:
                own[name].copy_(value)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args, **kwargs) -> None:
        if self.no_static_start() is None and holds_static(self, state_dict, prefix):
            names = (f'{prefix}weight', f'{prefix}bias')
            with torch.no_grad():
                seeds = self.seed(state_dict[names[0]], state_dict.get(names[1]))
            # the caller's dict stays as it was
            state_dict = {key: value for key, value in state_dict.items() if key not in names}
            state_dict.update({f'{prefix}{name}': value for name, value in seeds.items() if value is not None})
            print_log(f'{prefix}weight: a static kernel; {type(self).__name__} starts as that convolution', logger='current')
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

"""The parts of a model that are worth compiling: tensors in, tensors out, no post-processing."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..anatomy import backbone_of, heads_of, is_whole
from ..routing.keep import asks


@dataclass
class Region:
    """A function of a model, to be replaced by a faster one.

    Attributes:
        owner, name: ``getattr(owner, name)`` is the function.
        fixed (bool): whether its input sizes follow the image's. Those of a second stage follow the number of boxes, which
            is another one for every image.
        whole (bool): whether it is the whole model.
    """

    owner: nn.Module
    name: str
    fixed: bool = True
    whole: bool = False

    def replace(self, make: Callable[[Callable], Callable]) -> None:
        """Put ``make(function)`` in the place of the function, for this instance."""
        setattr(self.owner, self.name, make(getattr(self.owner, self.name)))


def regions(model: nn.Module) -> Iterator[Region]:
    """Backbone with neck, dense heads and box-wise heads of a detector or segmenter; any other module as a whole."""
    if not is_whole(model):
        yield Region(model, 'forward', whole=True)
        return
    yield Region(model, 'extract_feat')
    heads = heads_of(model)
    yield from (Region(head, 'forward') for head in heads.dense)
    yield from (Region(head, 'forward', fixed=False) for head in (*heads.box, *heads.mask))


def regions_without_gates(model: nn.Module) -> Iterator[Region]:
    """Those of :func:`regions`, smaller where a gate leaves parts out: only torch can."""
    for region in regions(model):
        if region.name == 'extract_feat' and asks(backbone_of(model)):
            yield from (Region(neck, 'forward') for neck in [getattr(model, 'neck', None)] if neck is not None)
        elif not asks(region.owner) or region.name == 'extract_feat':
            yield region


def guarded(function: Callable, device: torch.device, dtype: torch.dtype, out_dtype: torch.dtype) -> Callable:
    """``function`` without gradients, on tensors of the model's device and dtype.

    Raises (when called):
        ValueError: an input on another device.
    """

    def enter(x):
        if not isinstance(x, Tensor):
            return x
        if x.device != device:
            raise ValueError(f'the deployed model is on {device}, its input on {x.device}; move the input')
        return x.to(dtype) if x.is_floating_point() else x

    def leave(x):
        return x.to(out_dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

    @torch.no_grad()
    def call(*args, **kwargs):
        return tree_map(leave, function(*tree_map(enter, args), **tree_map(enter, kwargs)))

    return call

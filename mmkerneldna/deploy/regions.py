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


class Guarded:
    """A function without gradients, on tensors of the model's device and dtype.

    An object rather than a closure: it can be pickled, and in a deep copy of the model the function is the copy's.

    Args:
        function: a method of the model, or what stands in its place.
        device, dtype: of the tensors it takes.
        out_dtype: of the floating tensors it returns.

    Raises (when called):
        ValueError: an input on another device.
    """

    def __init__(self, function: Callable, device: torch.device, dtype: torch.dtype, out_dtype: torch.dtype) -> None:
        self.function, self.device, self.dtype, self.out_dtype = function, device, dtype, out_dtype

    @torch.no_grad()
    def __call__(self, *args, **kwargs):
        return tree_map(self._leave, self.function(*tree_map(self._enter, args), **tree_map(self._enter, kwargs)))

    def _enter(self, x):
        if not isinstance(x, Tensor):
            return x
        if x.device != self.device:
            raise ValueError(f'the deployed model is on {self.device}, its input on {x.device}; move the input')
        return x.to(self.dtype) if x.is_floating_point() else x

    def _leave(self, x):
        return x.to(self.out_dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

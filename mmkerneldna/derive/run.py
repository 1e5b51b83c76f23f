"""Run a net as far as its changed parts reach, and record what goes into and out of its modules."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..anatomy import has_proposals, heads_of, is_whole, task_of
from .source import DeriveError

Call = tuple[tuple, Any]  # positional arguments, output


def tensors(tree: Any) -> list[Tensor]:
    """The floating tensors in any nesting of containers."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


class Run:
    """How to call a net on preprocessed images so that all of ``paths`` are reached, and not much more.

    Args:
        net (nn.Module): a backbone, or a whole detector or segmenter.
        paths (Iterable[str]): of the modules of interest.
    """

    def __init__(self, net: nn.Module, paths: Iterable[str]) -> None:
        parts = {path.split('.')[0] for path in paths}
        self.whole = is_whole(net)
        self.part = 'backbone' if parts <= {'backbone'} else 'features' if parts <= {'backbone', 'neck'} else 'all'

    def __call__(self, net: nn.Module, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) normalised images -> the outputs, one tensor per level."""
        device = next(net.parameters()).device
        images = images.to(device)
        if not self.whole:
            return tensors(net(images))
        if self.part == 'backbone':
            return tensors(net.backbone(images))
        if self.part == 'features':
            return tensors(net.extract_feat(images))
        return tensors(_heads(net, net.extract_feat(images), images))


def _heads(net: nn.Module, features: Any, images: Tensor) -> Any:
    """What the heads make of the features; the boxes of a second stage are the same whatever the first one finds."""
    if task_of(net) == 'segmentation':
        auxiliary = getattr(net, 'auxiliary_head', None) or ()
        extra = auxiliary if isinstance(auxiliary, (tuple, nn.ModuleList)) else (auxiliary,)
        return [head(features) for head in (*heads_of(net).dense, *extra)]
    size = tuple(images.shape[-2:])
    meta = dict(ori_shape=size, img_shape=size, pad_shape=size, batch_input_shape=size, scale_factor=(1.0, 1.0))
    samples = [DetDataSample(metainfo=dict(meta, img_id=i)) for i in range(len(images))]
    if not has_proposals(net):
        return net(images, samples, mode='tensor')
    boxes = InstanceData(bboxes=images.new_tensor(_grid(*size)))
    return [net.rpn_head(features), net.roi_head(features, [boxes] * len(images), samples)]


def _grid(height: int, width: int) -> list[list[float]]:
    """Boxes x1, y1, x2, y2: the quarters and sixteenths of the image."""
    return [
        [x * width / n, y * height / n, (x + 1) * width / n, (y + 1) * height / n]
        for n in (2, 4)
        for y in range(n)
        for x in range(n)
    ]


@contextmanager
def recorded(net: nn.Module, paths: Iterable[str]) -> Iterator[dict[str, list[Call]]]:
    """Record every call of the modules at ``paths``; outputs are copied, for many are changed in place afterwards."""
    calls: dict[str, list[Call]] = {path: [] for path in paths}

    def hook(path):
        def record(module, args, output):
            calls[path].append((args, tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, output)))

        return record

    handles = [net.get_submodule(path).register_forward_hook(hook(path)) for path in calls]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def called(net: nn.Module, run: Run, images: Tensor) -> set[str]:
    """Paths of the modules of ``net`` that a run calls with tensors only."""
    seen: set[str] = set()

    def hook(path):
        def note(module, args, kwargs, output):
            if args and not kwargs and len(tensors(args)) == len(tree_leaves(args)) and tensors(output):
                seen.add(path)

        return note

    handles = [module.register_forward_hook(hook(path), with_kwargs=True) for path, module in net.named_modules() if path]
    try:
        run(net, images)
    finally:
        for handle in handles:
            handle.remove()
    return seen


class Images:
    """Batches of preprocessed images that can be gone through again and again.

    Args:
        source: an iterable of (N, 3, H, W) tensors; one that can be gone through only once is kept in memory.

    Raises:
        DeriveError: no batch, or one that is not such a tensor.
    """

    def __init__(self, source: Iterable[Tensor]) -> None:
        once = iter(source) is source
        self._source: Iterable[Tensor] = list(source) if once else source
        self.first = next(iter(self._source), None)
        if self.first is None:
            raise DeriveError('images gives no batch at all')
        self._check(self.first)

    @staticmethod
    def _check(batch: Tensor) -> Tensor:
        if not isinstance(batch, Tensor) or batch.dim() != 4 or batch.shape[1] != 3 or not batch.is_floating_point():
            found = f'a tensor {tuple(batch.shape)} of {batch.dtype}' if isinstance(batch, Tensor) else type(batch).__name__
            raise DeriveError(f'images must give normalised floating (N, 3, H, W) tensors, got {found}')
        if not torch.isfinite(batch).all():
            raise DeriveError('images gives a batch with NaN or infinite pixels: look at its preprocessing')
        return batch

    def take(self, count: int) -> Sequence[Tensor]:
        """The first ``count`` batches, fewer if there are no more."""
        taken = []
        for batch in self._source:
            taken.append(self._check(batch))
            if len(taken) == count:
                break
        return taken

    def endless(self) -> Iterator[Tensor]:
        """All batches, again and again."""
        while True:
            for batch in self._source:
                yield self._check(batch)

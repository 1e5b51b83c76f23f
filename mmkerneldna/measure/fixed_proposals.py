"""The same second stage for every two-stage detector, whatever its weights make of the images.

What follows a region proposal network costs as much as it finds. With random weights that is chance: NMS on noise leaves
another number of proposals, of other sizes, with every backbone, and another number of boxes gets to the mask head. Here
all layers and all post-processing run as the config says, but two outputs, once computed, are replaced by made-up ones
that depend on nothing but their shape:

- of the RPN: scores of random order in which all levels take turns, and no offsets, so that proposals are anchors,
  as many of each level as of any other unless NMS leaves fewer;
- of the box heads: one confident class per proposal, drawn at random, and no offsets.

So sorting, decoding, both NMS, RoIAlign, box and mask heads and pasted masks have the same input sizes, and RoIs, in every
model of the same strides and anchors. All images of a batch get the same proposals. What the layers compute is thrown
away, so results mean nothing: this is for measuring cost.
"""

from collections.abc import Callable
from typing import Any

import torch
from mmengine.config import ConfigDict
from torch import Tensor, nn

from ..anatomy import heads_of
from ..errors import UsageError

# Logits. Ranked scores spread over the sigmoid's range for the first thousand of each level (nms_pre of most configs);
# the class drawn gets a probability of 0.8 or more among 80, every other one stays below any score_thr in use.
TOP, RANKS_PER_LOGIT = 4.0, 250
CONFIDENT, SPREAD = 6.0, 3.0


class FixedProposals:
    """Context in which a two-stage detector predicts from the same ``count`` proposals per image as any other.

    Outside of the context the model is as it was. It may be deployed: what is compiled stays compiled and is run.

    Args:
        model (nn.Module): a detector for which :func:`mmkerneldna.anatomy.has_proposals` holds.
        count (int): proposals per image that the RPN hands to the second stage, in place of its
            ``test_cfg.max_per_img``.

    Raises:
        UsageError: ``count`` is below 1; in use, if the RPN's NMS leaves fewer boxes, or if a head's outputs are not
            (scores, box offsets).
    """

    def __init__(self, model: nn.Module, count: int) -> None:
        if count < 1:
            raise UsageError(f'{count} proposals per image: at least 1 is needed')
        heads = heads_of(model)
        self.rpn: Any
        (self.rpn,), self.box_heads, self.count = heads.dense, heads.box, count
        self._made: dict[tuple, Tensor] = {}

    def __enter__(self) -> 'FixedProposals':
        self._test_cfg, self._predict = self.rpn.test_cfg, self.rpn.predict
        self.rpn.test_cfg = ConfigDict({**self._test_cfg, 'max_per_img': self.count})
        self.rpn.predict = self._checked_predict
        self._hooks = [self.rpn.register_forward_hook(self._rpn_outputs)]
        self._hooks += [head.register_forward_hook(self._box_outputs) for head in self.box_heads]
        return self

    def __exit__(self, *error) -> None:
        for hook in self._hooks:
            hook.remove()
        del self.rpn.predict  # the method of its class shows again
        self.rpn.test_cfg = self._test_cfg

    def _checked_predict(self, features, samples, *args, **kwargs):
        results = self._predict(features, samples, *args, **kwargs)
        fewest, (height, width) = min((len(found), sample.img_shape[:2]) for found, sample in zip(results, samples))
        if fewest < self.count:
            raise UsageError(
                f'{self.count} proposals per image: an image of {height}x{width} has {fewest} anchors after '
                f"the RPN's NMS; ask for {fewest} at most, or for larger images"
            )
        return results

    def _rpn_outputs(self, head: nn.Module, inputs: Any, outputs: Any) -> tuple[list[Tensor], list[Tensor]]:
        if not (_is_pair(outputs, (list, tuple)) and all(x.dim() == 4 for level in outputs for x in level)):
            raise UsageError(
                f'proposals of a {type(head).__name__} cannot be fixed: its outputs are not (scores, box '
                'offsets), a map per level'
            )
        scores, offsets = outputs
        return (
            [self._like(x[:1], _ranked, level).expand_as(x) for level, x in enumerate(scores)],
            [self._like(x[:1], _zeros).expand_as(x) for x in offsets],
        )

    def _box_outputs(self, head: nn.Module, inputs: Any, outputs: Any) -> tuple[Tensor, Tensor]:
        if not (_is_pair(outputs, Tensor) and all(x.dim() == 2 for x in outputs)):
            raise UsageError(
                f'boxes of a {type(head).__name__} cannot be fixed: its outputs are not (class scores, box '
                'offsets), a row per proposal'
            )
        scores, offsets = outputs
        return self._like(scores, _one_class), self._like(offsets, _zeros)

    def _like(self, output: Tensor, make: Callable, seed: int = 0) -> Tensor:
        """Made-up values in the shape, dtype, device and memory layout of an output; made once."""
        key = make, seed, output.shape, output.stride(), output.dtype, output.device
        if key not in self._made:
            values = make(output.shape, torch.Generator().manual_seed(seed))
            self._made[key] = torch.empty_like(output).copy_(values)
        return self._made[key]


def _is_pair(outputs: Any, kind: Any) -> bool:
    return isinstance(outputs, tuple) and len(outputs) == 2 and all(isinstance(x, kind) for x in outputs)


def _ranked(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Logits that fall by the same step from place to place of a random order, whatever the shape."""
    ranks = torch.randperm(shape.numel(), generator=generator)
    return (TOP - ranks / RANKS_PER_LOGIT).view(shape)


def _one_class(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """(n, classes + 1), background last -> logits with one high one per row, never the background's."""
    rows, columns = shape
    logits = torch.zeros(shape)
    classes = torch.randint(max(columns - 1, 1), (rows, 1), generator=generator)
    return logits.scatter_(1, classes, CONFIDENT + SPREAD * torch.rand(rows, 1, generator=generator))


def _zeros(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return torch.zeros(shape)

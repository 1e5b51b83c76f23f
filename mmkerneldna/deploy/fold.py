"""Fold BatchNorm into the convolution that feeds it, wherever a run of the net shows that this is exact.

Into its kernel and bias, or into the factors behind a kernel that is shared (:mod:`.scaled_conv`).

Which norm follows which conv can't be read off the module tree: mmdet registers the norms of a block before its convs, a
head runs one conv on five levels, blocks share convs. So one forward pass is watched instead. A conv and a norm belong
together if every output of the conv went into that norm and into nothing else, and the norm saw nothing but such outputs.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from mmcv.cnn.bricks.conv2d_adaptive_padding import Conv2dAdaptivePadding
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..modules import is_plain_conv, replace, running_stats
from .scaled_conv import ScaledConv2d


@dataclass
class FoldReport:
    """What folding did: BNs folded, and those left with the reason."""

    folded: int = 0
    left: dict[str, str] = field(default_factory=dict)


def fold_batch_norms(module: nn.Module, run: Callable[[], object]) -> FoldReport:
    """Fold what may be folded, in place; a folded norm becomes ``nn.Identity``.

    Args:
        module (nn.Module): in evaluation mode.
        run: runs a forward pass of ``module`` that reaches what is to be folded.

    Returns:
        FoldReport: names are paths in ``module``.
    """
    names = {m: name for name, m in module.named_modules()}
    norms = [m for m in names if isinstance(m, _BatchNorm)]
    watch = _Watch([m for m in names if isinstance(m, (nn.modules.conv._ConvNd, ScaledConv2d))], norms)
    with torch.no_grad(), watch:
        run()
    report = FoldReport()
    for norm in norms:
        reason = watch.obstacle(norm)
        if reason:
            report.left[names[norm]] = reason
        else:
            _fold(norm, watch.feeders[norm])
            replace(module, norm, nn.Identity())
            report.folded += 1
    return report


class _Watch(TorchDispatchMode):
    """Follows conv outputs through a forward pass: which norm takes them, and how many operations read them."""

    def __init__(self, convs: list[nn.Module], norms: Sequence[nn.Module]) -> None:
        super().__init__()
        self.feeders: dict[nn.Module, set[nn.Module]] = {norm: set() for norm in norms}
        self._foreign: set[nn.Module] = set()  # norms that saw something else than a plain conv's output
        self._outputs: dict[int, tuple] = {}  # id -> (conv, tensor); holds the tensor, so that no id is used twice
        self._taken: dict[int, nn.Module] = {}  # id of a conv output -> the norm that took it
        self._reads: Counter = Counter()
        self._calls: Counter = Counter()
        self._weights = {id(conv.weight) for conv in convs if isinstance(getattr(conv, 'weight', None), nn.Parameter)}
        self._hooks = [conv.register_forward_hook(self._after_conv) for conv in convs]
        self._hooks += [norm.register_forward_pre_hook(self._before_norm) for norm in norms]

    def __exit__(self, *exc) -> None:
        super().__exit__(*exc)
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for leaf in tree_leaves((args, kwargs or {})):
            if isinstance(leaf, Tensor) and (id(leaf) in self._outputs or id(leaf) in self._weights):
                self._reads[id(leaf)] += 1
        return func(*args, **(kwargs or {}))

    def _after_conv(self, conv, args, output) -> None:
        self._calls[conv] += 1
        self._outputs[id(output)] = (conv, output)

    def _before_norm(self, norm, args) -> None:
        conv = self._outputs.get(id(args[0]), (None,))[0]
        if conv is None:
            self._foreign.add(norm)
        else:
            self.feeders[norm].add(conv)
            self._taken[id(args[0])] = norm

    def obstacle(self, norm: nn.Module) -> str:
        """Why ``norm`` can't be folded, '' if it can."""
        if not norm.track_running_stats or norm.running_mean is None:
            return 'uses the statistics of the batch'
        if norm in self._foreign:
            return 'takes something else than the output of a convolution'
        if not self.feeders[norm]:
            return 'not reached by the probe'
        return next(filter(None, (self._conv_obstacle(conv, norm) for conv in self.feeders[norm])), '')

    def _conv_obstacle(self, conv: nn.Module, norm: nn.Module) -> str:
        if not isinstance(conv, ScaledConv2d):  # which leaves its kernel alone
            if not (is_plain_conv(conv) or type(conv) is Conv2dAdaptivePadding) or conv._forward_pre_hooks:
                return f'follows a {type(conv).__name__}, which computes its own kernel'
            if self._reads[id(conv.weight)] != self._calls[conv]:
                return 'the kernel of its convolution is used elsewhere as well'
        for key, (owner, _) in self._outputs.items():
            if owner is conv and (self._taken.get(key) is not norm or self._reads[key] != 1):
                return 'the output of its convolution is used elsewhere as well'
        return ''


@torch.no_grad()
def _fold(norm: _BatchNorm, convs: set[nn.Module]) -> None:
    """In double precision: a folded net then differs from the original by one rounding of its weights."""
    mean, var = running_stats(norm)
    factor = (var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.double()
    shift = -mean.double() * factor
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    for conv in convs:
        if isinstance(conv, ScaledConv2d):
            conv.then(factor, shift)
            continue
        bias = shift if conv.bias is None else shift + conv.bias.double() * factor
        dtype = conv.weight.dtype
        conv.weight = nn.Parameter((conv.weight.double() * factor.view(-1, 1, 1, 1)).to(dtype), requires_grad=False)
        conv.bias = nn.Parameter(bias.to(dtype), requires_grad=False)

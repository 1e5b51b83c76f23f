"""TreeRouter: a soft decision tree as the gate of experts.

Distilling a Neural Network Into a Soft Decision Tree, Frosst and Hinton, 2017, https://arxiv.org/abs/1711.09784. There each
leaf is a fixed distribution; here it is an expert.

Letters: M inputs (images or positions), C features of each, n leaves, one per expert.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..layers.drop_in import at_least_fp32
from ..layers.routed import is_written

#: Up to this many inputs, the weights of each one's node are gathered and only the decisions on its path computed. Above it,
#: a level is one matrix product over all of its nodes: cheaper than to copy a row of weights per input.
FEW_INPUTS = 64


@MODELS.register_module()
class TreeRouter(nn.Module):
    """Gate of n experts in log2(n) decisions, each a linear function of the input: ``gate=dict(type='TreeRouter')``.

    In training all leaves are reached, a leaf with the product of the probabilities along its path, and the outputs of all
    experts are mixed: n times the cost of one. In the course of it the weights of the leaves become hard, with the gradient of
    the soft ones (``RoutingLossHook``, which the tools add). In inference the tree is walked from its root, at each node to
    the more probable side, and one expert computed.

    Node i has the children 2i + 1, which a value of at most 0 leads to, and 2i + 2.

    Args:
        in_channels (int): C.
        num_experts (int): n, a power of two of at least 2.

    Raises:
        ValueError: ``num_experts`` is not a power of two.
    """

    def __init__(self, in_channels: int, num_experts: int) -> None:
        super().__init__()
        if num_experts < 2 or num_experts & (num_experts - 1):
            raise ValueError(
                f'num_experts={num_experts} must be a power of two (2, 4, 8, ...) to be the leaves of a TreeRouter'
            )
        self.num_experts, self.depth = num_experts, num_experts.bit_length() - 1
        self.decisions = nn.Linear(in_channels, num_experts - 1)
        self.seen: list[Tensor] | None = None  # leaves of each call in inference, while record_leaves is on

    def forward(self, x: Tensor) -> Tensor:
        """(M, C) -> log-probabilities of the leaves, (M, n)."""
        values = at_least_fp32(self.decisions(x))
        paths = values.new_zeros(x.shape[0], 1)
        for level in range(self.depth):
            here = values[:, 2**level - 1 : 2 ** (level + 1) - 1]
            paths = torch.stack([paths + F.logsigmoid(-here), paths + F.logsigmoid(here)], 2).flatten(1)
        return paths

    @torch.no_grad()
    def walk(self, x: Tensor) -> Tensor:
        """(M, C) -> number of the leaf that each input comes to, (M,)."""
        place = torch.zeros(x.shape[0], dtype=torch.long, device=x.device)  # within its level
        for level in range(self.depth):
            place = 2 * place + (self._decide(x, level, place) > 0)
        if self.seen is not None and not self.training:
            self.seen.append(place.cpu())
        return place

    def _decide(self, x: Tensor, level: int, place: Tensor) -> Tensor:
        """Value of each input's own node, (M,)."""
        first, weight, bias = 2**level - 1, self.decisions.weight, self.decisions.bias
        if not is_written() and len(x) <= FEW_INPUTS:
            nodes = first + place
            return torch.linalg.vecdot(x.to(weight.dtype), weight[nodes]) + bias[nodes]
        values = F.linear(x, weight[first : 2 * first + 1], bias[first : 2 * first + 1])
        return values.gather(1, place[:, None])[:, 0]

    def describe(self, leaves: Tensor, channels: int = 3) -> str:
        """The tree as text, with the share of the inputs that came to each node and the channels that decide there.

        ::

            400 inputs: 4 leaves, 2 decisions each
            |-- 0.72 c12 - 0.41 c3 + 0.05 <= 0: 62.0 %
            |   |-- 0.31 c7 - 0.30 c0 - 0.11 <= 0: leaf 0, 40.0 %
            |   `-- else: leaf 1, 22.0 %
            `-- else: 38.0 %
            ...

        Args:
            leaves: what :meth:`walk` returned, of any shape.
            channels: of each decision, those with the largest weights are printed.
        """
        counts = torch.bincount(leaves.flatten(), minlength=self.num_experts).double()
        lines = [f'{int(counts.sum())} inputs: {self.num_experts} leaves, {self.depth} decisions each']
        return '\n'.join(lines + self._branch(0, 0, counts / counts.sum().clamp_min(1), channels, ''))

    def _branch(self, level: int, place: int, shares: Tensor, channels: int, indent: str) -> list[str]:
        """The lines below one node; its leaves are a slice of all."""
        lines = []
        for side in (0, 1):
            child, width = 2 * place + side, self.num_experts >> (level + 1)
            share = 100 * shares[child * width : (child + 1) * width].sum()
            question = self._question(2**level - 1 + place, channels) if side == 0 else 'else'
            leaf = f'leaf {child}, ' if width == 1 else ''
            lines.append(f'{indent}{("|--", "`--")[side]} {question}: {leaf}{share:.1f} %')
            if width > 1:
                lines += self._branch(level + 1, child, shares, channels, indent + ('|   ', '    ')[side])
        return lines

    def _question(self, node: int, channels: int) -> str:
        weight, bias = self.decisions.weight[node].detach(), self.decisions.bias[node].item()
        largest = weight.abs().topk(min(channels, len(weight))).indices.tolist()
        terms = ' '.join(f'{weight[c]:+.2f} c{c}' for c in largest)
        return f'{terms} {"..." if len(weight) > channels else ""} {bias:+.2f} <= 0'.replace('  ', ' ')


@contextmanager
def record_leaves(model: nn.Module) -> Iterator[dict[str, TreeRouter]]:
    """Let the trees of a model note, in ``seen``, the leaves that inputs come to in inference: (M,) per call.

    Yields:
        dict: {path: tree}.
    """
    trees = {path: m for path, m in model.named_modules() if isinstance(m, TreeRouter)}
    for tree in trees.values():
        tree.seen = []
    try:
        yield trees
    finally:
        for tree in trees.values():
            tree.seen = None

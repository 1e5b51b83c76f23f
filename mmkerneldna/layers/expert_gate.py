"""The gate of a mixture of experts: which experts an input goes to, with which weights, and the loss that keeps all in use.

The input is a pooled image for :class:`.moe_conv.MoEConv2d` and a position of the map for ``PositionMoE2d``; the gate values
(softmax, then top-k, not renormalised) are those of Scaling Vision with Sparse Mixture of Experts, Riquelme et al., NeurIPS
2021, https://arxiv.org/abs/2106.05974, the balance loss that of Switch Transformers, Fedus et al., JMLR 2022,
https://arxiv.org/abs/2101.03961

Letters: M inputs of the gate (images or positions), C features of each, n experts, k experts per input.
"""

from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from .drop_in import at_least_fp32
from .routed import Routed, is_written, ranked

#: Step of the running share of each expert: it looks back over some 20 batches. The paper takes the share within the batch,
#: of thousands of tokens; a detector's batch has one or two images, whose share says nothing of the balance.
SHARE_STEP = 0.05
#: Part of a training after which a tree's decisions are hard in the forward pass: the experts then train with those that will
#: be walked. A lower temperature alone does not do: experts grow apart instead and live on small differences between leaves.
HARDENED = 0.5
#: up to so many experts a maximum over them is faster row by row of the transposed logits
FEW_EXPERTS = 8


def balance_loss(probabilities: Tensor, share: Tensor) -> Tensor:
    """``n sum_e share_e mean_i p_ie`` (Switch Transformers, equation 4): 1 when all experts are used alike.

    Args:
        probabilities: p, (M, n), the softmax of the gate.
        share: (n,), the part of all assignments that each expert got; sums to 1, without gradient.
    """
    return len(share) * (share * probabilities.mean(0)).sum()


def weights_of_all(weights: Tensor, chosen: Tensor, experts: int) -> Tensor:
    """The weights of all experts in their order, zero for those that an input does not go to.

    Args:
        weights, chosen: of the experts of each input, and their numbers, (M, k); no number twice.
        experts: n.

    Returns:
        (M, n).
    """
    return weights.new_zeros(weights.shape[0], experts).scatter(1, chosen, weights)


def most_probable(probabilities: Tensor, share: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k most probable experts of each input; of equally probable ones those that were used least, then the first.

    A gate that starts at zero finds all experts equally probable, so that they take turns until it knows better.

    Args:
        probabilities: p, (M, n).
        share: (n,), as in :func:`balance_loss`.
        k: experts per input.

    Returns:
        Their probabilities and numbers, (M, k) each.
    """
    by_use = ranked(share, len(share), 0, descending=False)
    ordered = probabilities.detach()[:, by_use]
    # argmax takes the first of equals, as a stable sort does, and is far cheaper over thousands of positions
    ranks = ordered.argmax(1, keepdim=True) if k == 1 else ranked(ordered, k, 1)
    chosen = by_use[ranks]
    return probabilities.gather(1, chosen), chosen


@torch.no_grad()
def most_probable_one(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax and maximum, where nothing takes turns and nothing is learned.

    Args:
        logits: (M, n).

    Returns:
        Probability and number of the most probable expert, (M, 1) each.
    """
    if logits.shape[1] > FEW_EXPERTS:
        best = logits.softmax(1).max(1, keepdim=True)
        return best.values, best.indices
    columns = logits.t().contiguous()
    largest = columns.max(0)  # the M stand side by side: vector instructions work along them, not along a few experts
    return (columns - largest.values).exp_().sum(0).reciprocal_()[:, None], largest.indices[:, None]


class ExpertGate(Routed):
    """Before the convolution or ``nn.Module`` in the bases of a layer of experts: its gate, top-k and balance.

    The gate is a linear layer behind a softmax, or a registered module from (M, C) to logits (M, n), as ``TreeRouter``. One
    with a method ``walk`` is a tree: all of its leaves are computed in training and mixed, by weights that move from the
    soft decisions to the hard ones (with the gradient of the soft ones), and in inference only the one that ``walk`` finds.

    Attributes:
        share (Tensor): (n,), running part of the assignments that each expert got in training; sums to 1.
    """

    loss_name, rate_name = 'moe_balance', 'moe_share'
    num_experts: int
    share: Tensor
    hardness = 0.0  # of a tree's leaves in training, from 0 to 1

    def _make_gate(self, in_channels: int, top_k: int, gate: dict | None) -> None:
        """Add the gate of ``num_experts`` experts; ValueError unless ``top_k`` fits it."""
        if isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= self.num_experts:
            raise ValueError(f'top_k={top_k!r} must be a whole number between 1 and num_experts={self.num_experts}')
        self.top_k = top_k
        self.gate: Any = nn.Linear(in_channels, self.num_experts)
        if gate is not None:
            self.gate = MODELS.build(dict(gate, in_channels=in_channels, num_experts=self.num_experts))
        if self.is_tree and top_k != 1:
            raise ValueError(f'top_k={top_k} does not go with gate={gate}: a tree leads to one leaf, so top_k must be 1')
        # what the weights of the chosen experts sum to while the gate is undecided
        self.static_gain = 1.0 if self.is_tree else top_k / self.num_experts
        self.register_buffer('share', torch.full((self.num_experts,), 1 / self.num_experts))

    @property
    def is_tree(self) -> bool:
        """Whether the gate is walked in inference."""
        return hasattr(self.gate, 'walk')

    def init_gate(self) -> None:
        """Nearly undecided."""
        for layer in (m for m in self.gate.modules() if isinstance(m, nn.Linear)):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def make_neutral(self) -> None:
        """Every gate value is 1 / n."""
        for layer in (m for m in self.gate.modules() if isinstance(m, nn.Linear)):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def gate_features(self, features: Tensor) -> Tensor:
        """What the gate looks at, (M, C) -> (M, C)."""
        return features

    def route(self, features: Tensor) -> Tensor:
        """(M, C) -> probabilities (M, n), in fp32 under autocast."""
        return at_least_fp32(self.gate(self.gate_features(features))).softmax(1)

    def choose(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(M, C) -> weights and numbers of the experts, (M, k) each; k is n for a tree in training."""
        if self.is_tree:
            return self._choose_leaves(features)
        if self.top_k == 1 and not self.training and not torch.is_grad_enabled() and not is_written():
            return most_probable_one(at_least_fp32(self.gate(self.gate_features(features))))
        probabilities = self.route(features)
        if self.top_k == 1 and not self.training:  # nothing takes turns: a third of the time
            best = probabilities.max(1, keepdim=True)
            return best.values, best.indices
        weights, chosen = most_probable(probabilities, self.share, self.top_k)
        if self.collects and len(features):
            self.note(*self._seen(features, chosen))
        return weights, chosen

    def _choose_leaves(self, features: Tensor) -> tuple[Tensor, Tensor]:
        leaves = self.gate.walk(self.gate_features(features))[:, None]
        if not self.training:
            return torch.ones_like(leaves, dtype=at_least_fp32(features).dtype), leaves
        if self.collects and len(features):
            self.note(*self._seen(features, leaves))
        soft = self.route(features)
        hard = torch.zeros_like(soft).scatter(1, leaves, 1)
        every = torch.arange(self.num_experts, device=leaves.device).expand_as(soft)
        return soft + self.hardness * (hard - soft).detach(), every

    @torch.no_grad()
    def _seen(self, features: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        counts = torch.bincount(chosen.flatten(), minlength=self.num_experts).to(self.share.dtype)
        self.share.lerp_(counts / counts.sum(), SHARE_STEP)
        # Reentrant checkpointing has no graph here the first time, so the loss then moves the gate alone. The share is a copy:
        # it moves on if a head uses the layer again.
        return features, self.share.clone()

    def loss_of(self, features: Tensor, share: Tensor) -> Tensor:
        """The balance loss of one call."""
        return balance_loss(self.route(features), share)

    def rates(self) -> dict[str, float]:
        """The share of each expert."""
        return {f'expert{i}': value for i, value in enumerate(self.share.tolist())}

    def anneal(self, progress: float) -> None:
        """Move a tree's leaves from soft weights to hard ones."""
        self.hardness = min(1.0, progress / HARDENED)

"""Turn what is special about a trained KernelDNA net into plain layers, in place.

KernelDNA: Dynamic Kernel Sharing via Decoupled Naive Adapters, Huang et al., https://arxiv.org/abs/2503.23379

Letters: N batch, C channels, R hidden width of a gate, H W map size.
"""

from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from functools import partial

from torch import Tensor, nn

from ..layers import ChildConv2d, InputGate
from ..modules import slots
from .gate_scale import gate_scale
from .scaled_conv import ScaledConv2d, lent_kernels


class FoldedGate(nn.Module):
    """An input gate whose norm was folded away: two matrices instead of six layers.

    ``x * sigmoid(W2 relu(W1 mean(x) + b1) + b2)``. As matrices, the two 1x1 convs on pooled features save the set-up of a
    convolution, which at batch 1 costs more than the product.

    Args:
        gate (InputGate): with an identity in the place of its norm.
        triton (bool): use the fused GPU kernels of :mod:`.gate_scale`.
    """

    def __init__(self, gate: InputGate, triton: bool = False) -> None:
        super().__init__()
        bias = gate.fc1.bias if gate.fc1.bias is not None else gate.fc1.weight.new_zeros(gate.fc1.out_channels)
        assert gate.fc2.bias is not None  # every gate has it
        self.weight1 = _transposed_in_memory(gate.fc1.weight)
        self.bias1 = nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.weight2 = _transposed_in_memory(gate.fc2.weight)
        self.bias2 = nn.Parameter(gate.fc2.bias.detach().clone(), requires_grad=False)
        self.triton = triton

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the scaled input, (N, C, H, W)."""
        return gate_scale(x, self.weight1, self.bias1, self.weight2, self.bias2, self.triton)

    def extra_repr(self) -> str:
        return f'{self.weight1.shape[1]}, hidden={self.weight1.shape[0]}'


class ScaledByGate(nn.Module):
    """An input gate that keeps its norm (LN, GN, or a BN that can't be folded): ``x * gate(x)``."""

    def __init__(self, gate: InputGate) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the scaled input, (N, C, H, W)."""
        return x * self.gate(x)


class GatedConv(nn.Module):
    """What is left of a child: a convolution without a gate behind an input gate."""

    def __init__(self, gate: InputGate, conv: nn.Module) -> None:
        super().__init__()
        self.gate = ScaledByGate(gate)
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        return self.conv(self.gate(x))


def bake_children(module: nn.Module) -> int:
    """Replace every ``ChildConv2d`` below ``module`` by a :class:`GatedConv` with a kernel of its own.

    Returns:
        int: convs baked.
    """
    children = [(owner, name, child) for owner, name, child in slots(module) if isinstance(child, ChildConv2d)]
    baked = {id(child): GatedConv(child.gate, child.to_plain()) for _, _, child in children}
    for owner, name, child in children:
        setattr(owner, name, baked[id(child)])
    return len(baked)


def unshare_convs(module: nn.Module) -> int:
    """Give every place that holds the same convolution a copy of its own, so that each can take its own norm.

    Heads with separate norms per level and shared convs (RetinaSepBN, RTMDet) hang one conv into several blocks; a baked
    child is copied with its gate. A kernel that stays shared is not copied.

    Returns:
        int: copies made.
    """
    convs = [slot for slot in slots(module) if isinstance(slot[2], (GatedConv, ScaledConv2d, nn.modules.conv._ConvNd))]
    seen: Counter = Counter()
    copies = 0
    for owner, name, conv in convs:
        seen[id(conv)] += 1
        if seen[id(conv)] > 1:
            setattr(owner, name, deepcopy(conv, lent_kernels(conv)))
            copies += 1
    return copies


def lean_gates(module: nn.Module, triton: bool = False) -> None:
    """Turn every gate whose norm is gone into a :class:`FoldedGate`, the last step after folding."""
    for owner, name, child in slots(module):
        if isinstance(child, ScaledByGate) and isinstance(child.gate.norm, nn.Identity):
            setattr(owner, name, FoldedGate(child.gate, triton))


def guard_mmcv_ops(module: nn.Module) -> None:
    """Let mmcv's compiled ops (RoIAlign, deformable convs) see contiguous tensors only.

    They read the memory as if it were contiguous, whatever its strides: on channels_last features RoIAlign returns, without
    an error, the features of other pixels.
    """
    for child in module.modules():
        if type(child).__module__.startswith('mmcv.ops'):
            child.register_forward_pre_hook(_contiguous_arguments)


def keep_mmcv_ops_in_fp32(module: nn.Module) -> None:
    """Let mmcv's compiled ops see float32 tensors only, in a model of half precision: most have no other kernels for CPUs."""
    for child in module.modules():
        if type(child).__module__.startswith('mmcv.ops'):
            child.float()
            child.forward = partial(_in_float32, child.forward)


def _in_float32(function: Callable[..., Tensor], *args) -> Tensor:
    """What ``function`` returns for float32, in the type of the first argument."""
    output = function(*(arg.float() if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in args))
    return output.to(args[0].dtype)


def _contiguous_arguments(module: nn.Module, args: tuple) -> tuple:
    return tuple(arg.contiguous() if isinstance(arg, Tensor) else arg for arg in args)


def _transposed_in_memory(kernel: Tensor) -> nn.Parameter:
    """A 1x1 kernel as a matrix whose columns are contiguous: on a CPU the faster one to multiply a single row with."""
    return nn.Parameter(kernel.detach().flatten(1).t().contiguous().t(), requires_grad=False)

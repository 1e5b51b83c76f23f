"""Fuse activations and residual sums into the packed convolutions in front of them, for CPUs.

Every element-wise step reads and writes a whole feature map; done by the convolution, while its output is in registers, it
costs nothing. What follows a convolution is written in the ``forward`` of the module around it (``out += identity``), so each
such ``forward`` is traced by torch.fx and rewritten, for that instance. A rewritten one is kept only where it returns the same
on all inputs that the module saw in a run of the net.
"""

import operator
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from .bake import GatedConv
from .packed import RELU, Activation, PackedConv2d

#: relative to the largest value of an output; the same sums in another order
TOLERANCE = 1e-5

ACTIVATIONS: dict[type, Callable[[nn.Module], Activation]] = {
    nn.ReLU: lambda m: RELU,
    nn.ReLU6: lambda m: Activation('hardtanh', (0.0, 6.0)),
    nn.Hardtanh: lambda m: Activation('hardtanh', (float(m.min_val), float(m.max_val))),
    nn.LeakyReLU: lambda m: Activation('leaky_relu', (float(m.negative_slope),)),
    nn.SiLU: lambda m: Activation('swish'),
    nn.Hardswish: lambda m: Activation('hardswish'),
    nn.GELU: lambda m: Activation('gelu', (), m.approximate),
    nn.Sigmoid: lambda m: Activation('sigmoid'),
}
RELU_FUNCTIONS = (F.relu, torch.relu, F.relu_, torch.relu_)
SUMS = (operator.add, operator.iadd, torch.add)


def fuse_steps(model: nn.Module, run: Callable[[], object]) -> int:
    """Rewrite, in place, what may be fused.

    Args:
        model (nn.Module): in evaluation mode and float32, its convolutions packed.
        run: runs a forward pass of ``model`` that reaches what is to be fused.

    Returns:
        int: activations and sums that are now done by a convolution.
    """
    fused = 0
    done: set[PackedConv2d] = set()
    for module, inputs in _inputs_of_owners(model, run).items():  # outer ones first: they saw their input first
        convs = set(_own_convs(module))
        steps = _fuse(module, inputs) if convs - done else 0
        if steps:
            done |= convs
        fused += steps
    return fused


def _inputs_of_owners(model: nn.Module, run: Callable[[], object]) -> dict[nn.Module, list[Tensor]]:
    """Modules with convolutions of their own that take one tensor -> copies of all inputs they saw."""
    seen: dict[nn.Module, list[Tensor]] = {}
    others: set[nn.Module] = set()  # called in another way at least once

    def note(module, args, kwargs):
        if len(args) == 1 and isinstance(args[0], Tensor) and not kwargs:
            seen.setdefault(module, []).append(args[0].clone())
        else:
            others.add(module)

    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in model.modules() if any(_own_convs(module))]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return {module: inputs for module, inputs in seen.items() if module not in others}


def _own_convs(module: nn.Module) -> Iterator[PackedConv2d]:
    """Packed convolutions that the module's own ``forward`` calls, itself or through transparent modules."""
    for child in module.children():
        if isinstance(child, PackedConv2d):
            yield child
        elif _is_transparent(child):
            yield from _own_convs(child)


def _is_transparent(module: nn.Module) -> bool:
    """Modules that only call what they hold: their convolutions may take steps of the module around them."""
    return type(module) in (ConvModule, GatedConv) or type(module).forward is nn.Sequential.forward


@torch.no_grad()
def _fuse(module: nn.Module, inputs: list[Tensor]) -> int:
    traced = _trace(module)
    if traced is None:
        return 0
    fused = _rewrite(traced)
    if not fused or not all(_agree(traced(x.clone()), module.forward(x.clone())) for x in inputs):
        return 0
    module.forward = traced.forward
    return fused


class _Root(nn.Module):
    """Calls a module's ``forward``, with its defaults."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module.forward(x)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        return not _is_transparent(module)


def _trace(module: nn.Module) -> fx.GraphModule | None:
    """The module's ``forward`` as a graph of calls of its parts; None if it does more than that."""
    root = _Root(module)
    try:
        return fx.GraphModule(root, _Tracer().trace(root))
    except Exception:  # tracing runs the code of others on stand-ins for tensors: it may raise anything
        return None


def _agree(outputs, expected) -> bool:
    outputs, expected = tree_leaves(outputs), tree_leaves(expected)
    return len(outputs) == len(expected) and all(_close(o, e) for o, e in zip(outputs, expected))


def _close(output, expected) -> bool:
    if not isinstance(expected, Tensor):
        return output == expected
    if output.shape != expected.shape or output.dtype != expected.dtype:
        return False
    return expected.numel() == 0 or bool((output - expected).abs().max() <= TOLERANCE * expected.abs().max())


def _rewrite(traced: fx.GraphModule) -> int:
    """Fuse in a graph; returns the number of steps that went."""
    graph, modules = traced.graph, dict(traced.named_modules())
    if any(node.op == 'get_attr' for node in graph.nodes):
        return 0  # the graph would keep a parameter or buffer that a cast of the model replaces
    fused = 0
    for conv in [node for node in graph.nodes if isinstance(_called(node, modules), PackedConv2d)]:
        last = _behind_identities(conv, modules)
        step = _only_user(last)
        other = _other_summand(step, last)
        adds = step is not None and other is not None and modules[conv.target].groups == 1
        if step is not None and other is not None and adds:
            conv = last = _take_sum(conv, step, other)  # noqa: PLW2901
            step = _only_user(last)
        activation = _activation(step, modules)
        if step is not None and activation is not None and (activation == RELU or not adds):
            conv.kwargs = dict(activation=tuple(activation))
            step.replace_all_uses_with(last)
            fused += 1
        fused += adds
    graph.eliminate_dead_code()
    graph.lint()
    traced.recompile()
    return fused


def _called(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    return modules.get(str(node.target)) if node.op == 'call_module' else None


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _behind_identities(node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node:
    """The last of the folded norms behind a convolution."""
    user = _only_user(node)
    while user is not None and type(_called(user, modules)) is nn.Identity:
        node, user = user, _only_user(user)
    return node


def _other_summand(step: fx.Node | None, summand: fx.Node) -> fx.Node | None:
    """What is added to ``summand`` by ``step``, if it is a plain sum of two tensors."""
    if step is None:
        return None
    is_sum = (step.op == 'call_function' and step.target in SUMS) or (
        step.op == 'call_method' and step.target in ('add', 'add_')
    )
    if not is_sum or len(step.args) != 2 or step.kwargs:
        return None
    other = step.args[1] if step.args[0] is summand else step.args[0]
    return other if isinstance(other, fx.Node) and other is not summand else None


def _take_sum(conv: fx.Node, step: fx.Node, other: fx.Node) -> fx.Node:
    """The convolution called at the place of the sum, when both summands are there."""
    with conv.graph.inserting_before(step):
        joined = conv.graph.call_module(str(conv.target), (conv.args[0], other))
    step.replace_all_uses_with(joined)
    return joined


def _activation(step: fx.Node | None, modules: dict[str, nn.Module]) -> Activation | None:
    if step is None:
        return None
    if (step.op == 'call_function' and step.target in RELU_FUNCTIONS) or (
        step.op == 'call_method' and step.target in ('relu', 'relu_')
    ):
        return RELU
    module = _called(step, modules)
    make = None if module is None else ACTIVATIONS.get(type(module))
    return None if module is None or make is None else make(module)

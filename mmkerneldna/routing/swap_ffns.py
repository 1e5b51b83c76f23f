"""Experts in place of the perceptrons of a net's blocks: those of ConvNeXt, as mmpretrain and timm write it.

Experts that start as copies of a dense one: Sparse Upcycling, Komatsuzaki et al., ICLR 2023, https://arxiv.org/abs/2212.05055
"""

from collections.abc import Sequence
from typing import Any

from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import Tensor, nn

from .._registry import build_inner
from ..layers.match import SwapError, any_matching
from ..modules import is_plain_conv
from .position_ffn import PositionFFN2d

#: the two layers of a perceptron: in a block of mmpretrain's ConvNeXt, in timm's Mlp
MMPRETRAIN, TIMM = ('pointwise_conv1', 'pointwise_conv2'), ('fc1', 'fc2')
#: what timm's Mlp has between its layers in ConvNeXt V2
NORM = 'grn'

Names = tuple[str, str]


def swap_ffns(
    module: nn.Module, include: Sequence[str] = ('*',), names: Names | None = None, act: str = 'act', **options
) -> nn.Module:
    """Replace the perceptrons of a net's blocks by experts, in place, all or nothing.

    A perceptron is two layers with an activation between them, both 1x1 convolutions or both ``Linear``. The experts take the
    place of the first one, the others become identities. Static weights, those that are there and those that a checkpoint
    brings later, start every expert: the net computes what it did. The response norm of timm's ConvNeXt V2 stays between the
    layers.

    Args:
        module: any built module.
        include: globs (or ``re:`` patterns) of the paths of what holds the two layers: mmpretrain's blocks
            (``stages.2.*``), timm's perceptrons (``*stages_2.*.mlp``).
        names: the two layers; by default those of mmpretrain's ConvNeXt and of timm's ``Mlp``.
        act: the activation.
        options: of :class:`PositionFFN2d`, but for the channels.

    Returns:
        ``module`` itself.

    Raises:
        SwapError: no perceptron, or one whose two layers are neither plain 1x1 convolutions nor ``Linear``, with biases, or
            which has something else between them.
    """
    forms = (MMPRETRAIN, TIMM) if names is None else (names,)
    found = {path: (m, form) for path, m in module.named_modules() for form in forms if _has(m, (*form, act))}
    chosen = any_matching(list(found), include)
    if not chosen:
        raise SwapError(
            f'{type(module).__name__} has no block with {" or ".join(map(" and ".join, forms))} that include={list(include)} '
            f'matches; those it has: {", ".join(list(found)[:5]) or "none"}'
        )
    for path in chosen:
        _check(path, *found[path], act)
    for path in sorted(chosen):
        _swap(*found[path], act, options)
    print_log(f'{len(chosen)} perceptrons -> PositionFFN2d({options})', logger='current')
    return module


@MODELS.register_module(name='PositionFFNs')
def build_position_ffns(
    module: dict,
    include: Sequence[str] = ('*',),
    names: Names | None = None,
    act: str = 'act',
    num_experts: int = 4,
    top_k: int = 1,
    gate: dict | None = None,
    **injected,
) -> nn.Module:
    """Build a module from a config and make its perceptrons experts; returns the inner module: no wrapper, no key prefix.

    Args:
        module: config of the inner module.
        include, names, act: as in :func:`swap_ffns`.
        num_experts, top_k, gate: of :class:`PositionFFN2d`.

    Returns:
        The inner module.
    """
    return swap_ffns(build_inner(module, injected), include, names, act, num_experts=num_experts, top_k=top_k, gate=gate)


def _has(module: nn.Module, names: Sequence[str]) -> bool:
    return all(hasattr(module, name) for name in names)


def _check(path: str, block: nn.Module, names: Names, act: str) -> None:
    layers = [block.get_submodule(name) for name in names]
    for name, layer in zip(names, layers):
        pointwise = is_plain_conv(layer) and layer.kernel_size == (1, 1) and layer.groups == 1
        if not (pointwise or type(layer) is nn.Linear) or layer.bias is None or type(layer) is not type(layers[0]):
            raise SwapError(f'{path}.{name} is {layer}: a perceptron has two plain 1x1 Conv2d, or two Linear, with biases')
    if _channels(layers[0])[1] != _channels(layers[1])[0]:
        raise SwapError(f'{path}.{names[0]} is {layers[0]}, which {names[1]}, {layers[1]}, does not take: a gated perceptron?')
    for name, between in _others(block, names, act).items():
        if not isinstance(between, (nn.Identity, nn.Dropout)) and (name, names) != (NORM, TIMM):
            raise SwapError(f'{path}.{name} is {between}: between the layers of a perceptron only an activation is known')


def _others(block: nn.Module, names: Names, act: str) -> dict[str, nn.Module]:
    """What a block may call between the two layers: what is registered between them, and a response norm."""
    children = dict(block.named_children())
    first, last = (list(children).index(name) for name in names)
    return {name: m for i, (name, m) in enumerate(children.items()) if (first < i < last and name != act) or name == NORM}


def _channels(layer: Any) -> tuple[int, int]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


def _swap(block: nn.Module, names: Names, act: str, options: dict) -> None:
    first, second = (block.get_submodule(name) for name in names)
    dim = -1 if isinstance(first, nn.Linear) else 1
    ffn = PositionFFN2d(*_channels(first), _channels(second)[1], **options, channel_dim=dim)
    ffn.act = block.get_submodule(act)
    ffn.start_as((first.weight, first.bias), (second.weight, second.bias))  # type: ignore[arg-type]  # checked above
    if hasattr(block, NORM) and names == TIMM:
        ffn.between = block.get_submodule(NORM)
        setattr(block, NORM, nn.Identity())
    setattr(block, names[0], ffn.to(first.weight).train(first.training))  # type: ignore[call-overload]
    setattr(block, act, nn.Identity())
    setattr(block, names[1], nn.Identity())
    block.register_load_state_dict_pre_hook(_StaticWeights(names))


class _StaticWeights:
    """Turns a dense perceptron in a state dict that is being loaded into a block's experts."""

    def __init__(self, names: Names) -> None:
        self.names = names

    def __call__(self, block: nn.Module, state_dict: dict[str, Tensor], prefix: str, *args) -> None:
        first, second = ((f'{prefix}{name}.weight', f'{prefix}{name}.bias') for name in self.names)
        if not all(key in state_dict for key in (*first, *second)):
            return
        ffn = block.get_submodule(self.names[0])
        assert isinstance(ffn, PositionFFN2d)
        taken = [state_dict.pop(key) for key in (*first, *second)]
        ffn.start_as((taken[0], taken[1]), (taken[2], taken[3]))
        own = f'{prefix}{self.names[0]}.'
        state_dict.update({own + key: value for key, value in ffn.state_dict().items()})
        for key in [key for key in state_dict if key.startswith(f'{prefix}{NORM}.')]:
            state_dict[f'{own}between.{key.removeprefix(f"{prefix}{NORM}.")}'] = state_dict.pop(key)

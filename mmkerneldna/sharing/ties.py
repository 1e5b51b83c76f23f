"""Which kernels of a module tree are borrowed within it, and how a state dict holds them.

A child and its parent are two modules with one ``Parameter``. To torch both own it: a child's ``state_dict`` holds its kernel
like any conv's, so a part of a net that has lost the parent (taken out, or the parent replaced) saves and loads whole. Only
the tree that holds both can tell that one of the two names is enough. :func:`share_kernels` therefore registers two hooks on
the module it is given, functions without state of their own, which go along in ``deepcopy``, pickle and wrappers:

- saving drops the kernel under a child's name where the tree holds it under the parent's;
- loading gives a child what its parent gets, the very ``Parameter`` with ``assign=True``, and reports any other kernel under
  the child's name (a static net's) as unexpected.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..layers import ChildConv2d


class Tie(NamedTuple):
    """A kernel under two names.

    Attributes:
        path (str): of a child; one that hangs in several places has several ties.
        child (ChildConv2d): the borrower.
        parent (str): path of the owner.
    """

    path: str
    child: ChildConv2d
    parent: str


def find_ties(module: nn.Module) -> list[Tie]:
    """Ties between children and parents below ``module``; a child whose parent is elsewhere, or gone, owns its kernel."""
    places = list(module.named_modules(remove_duplicate=False))
    paths = {id(m): path for path, m in reversed(places)}
    return [
        Tie(path, m, paths[id(m.parent)])
        for path, m in places
        if isinstance(m, ChildConv2d) and m.tied and id(m.parent) in paths
    ]


def keep_ties(module: nn.Module) -> None:
    """Let state dicts of ``module``, and of whatever it becomes a part of, hold every kernel once, under its owner's name."""
    if _drop_borrowed not in module._state_dict_hooks.values():
        module.register_state_dict_post_hook(_drop_borrowed)
        module.register_load_state_dict_pre_hook(_lend_loaded)


@contextmanager
def owners_only(module: nn.Module) -> Iterator[None]:
    """Leave out of the parameters of children, for a while, the kernels that they borrow in ``module``."""
    children = {tie.child: tie.child._parameters for tie in find_ties(module)}
    for child, parameters in children.items():
        child._parameters = {name: p for name, p in parameters.items() if name != 'weight'}
    try:
        yield
    finally:
        for child, parameters in children.items():
            child._parameters = parameters


def _drop_borrowed(module: nn.Module, state_dict: dict, prefix: str, local_metadata: dict) -> None:
    for tie in find_ties(module):
        if _key(prefix, tie.parent) in state_dict:
            state_dict.pop(_key(prefix, tie.path), None)


def _lend_loaded(
    module: nn.Module,
    state_dict: dict,
    prefix: str,
    local_metadata: dict,
    strict: bool,
    missing_keys: list,
    unexpected_keys: list,
    error_msgs: list,
) -> None:
    assign = local_metadata.get('assign_to_params_buffers', False)
    for tie in find_ties(module):
        key, owner = _key(prefix, tie.path), _key(prefix, tie.parent)
        own = tie.child.weight
        kernel = state_dict.get(owner)
        if not torch.is_tensor(kernel) or kernel.shape != own.shape:
            kernel = None  # the owner's entry is missing or does not fit, which torch reports; the child keeps what it has
        elif assign and not isinstance(kernel, nn.Parameter):
            kernel = state_dict[owner] = nn.Parameter(kernel, requires_grad=own.requires_grad)
        if strict and key in state_dict and not _same(state_dict[key], kernel):
            unexpected_keys.append(key)
        state_dict[key] = own if kernel is None else kernel


def _key(prefix: str, path: str) -> str:
    return f'{prefix}{path}.weight'


def _same(one: Any, other: Tensor | None) -> bool:
    """Whether the file holds one kernel twice; then neither entry is foreign."""
    return one is other or (torch.is_tensor(one) and other is not None and one.shape == other.shape and torch.equal(one, other))

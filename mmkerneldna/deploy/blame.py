"""Which layer needs an operator that a file's format does not have."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


def missing_operator(error: BaseException) -> str | None:
    """The operator that an exporter says it can't write, such as ``aten::special_i0``; None of any other error."""
    found = re.search(r"operator '(aten::\w+)'", str(error))
    return found.group(1) if found else None


@torch.no_grad()
def layer_that_calls(part: nn.Module, example: Tensor, operator: str) -> str | None:
    """Path of the first module that calls an operator while ``part`` runs, None if none is seen to."""
    callers: list[str] = []
    with _path(part) as path, ExitStack() as modes:
        wanted = operator.partition('::')[2]

        def look(name: str) -> None:
            if name.partition('::')[2] == wanted or name == wanted:
                callers.append(path[-1])

        modes.enter_context(_Functions(look))
        modes.enter_context(_Kernels(look))
        part(example)
    return callers[0] if callers else None


class _Functions(TorchFunctionMode):
    """Calls of torch's Python functions."""

    def __init__(self, look) -> None:
        super().__init__()
        self.look = look

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.look(getattr(func, '__name__', ''))
        return func(*args, **(kwargs or {}))


class _Kernels(TorchDispatchMode):
    """Calls of the operators beneath."""

    def __init__(self, look) -> None:
        super().__init__()
        self.look = look

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.look(func._schema.name)
        return func(*args, **(kwargs or {}))


@contextmanager
def _path(part: nn.Module) -> Iterator[list[str]]:
    """A list that has, while a module runs, its path as the last entry."""
    path = ['the model itself']
    hooks = []
    for name, module in part.named_modules():
        if name:
            hooks.append(module.register_forward_pre_hook(lambda m, args, name=name: path.append(name)))
            hooks.append(module.register_forward_hook(lambda m, args, result: path.pop() and None))
    try:
        yield path
    finally:
        for hook in hooks:
            hook.remove()

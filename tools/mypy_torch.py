"""A plugin of mypy: what torch.nn.Module.__getattr__ finds is of any type, not ``Tensor | Module``.

torch states that union for every attribute that a class doesn't declare, also for ``conv.stride`` and ``bn.eps`` of a layer
that is known as a Module only. Each use of one would need a cast. Declared attributes keep their types.
"""

from collections.abc import Callable

from mypy.nodes import TypeInfo
from mypy.plugin import AttributeContext, Plugin
from mypy.types import AnyType, Type, TypeOfAny


class TorchPlugin(Plugin):
    """Knows the attributes that nn.Module declares from those that it looks up."""

    def get_attribute_hook(self, fullname: str) -> Callable[[AttributeContext], Type] | None:
        """mypy asks for each attribute, by the class it was looked for in."""
        owner, _, name = fullname.rpartition('.')
        symbol = self.lookup_fully_qualified(owner)
        info = symbol.node if symbol else None
        if isinstance(info, TypeInfo) and info.has_base('torch.nn.modules.module.Module') and info.get(name) is None:
            return lambda _: AnyType(TypeOfAny.explicit)
        return None


def plugin(version: str) -> type[Plugin]:
    """What mypy calls."""
    return TorchPlugin

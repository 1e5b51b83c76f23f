"""The layouts that oneDNN wants of one convolution kernel, or of one matrix, each laid out once.

Which layout is fastest depends on the size of the input. A kernel packed for another size is laid out anew at every call: on an
Intel Xeon with AVX-512 a ResNet-50 packed at 64x96 took twice as long at 224x224 as one packed there. A kernel has few
layouts (two on that CPU), whatever the number of sizes, so each is kept once.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..torch_internals import packed_layout

#: input shapes whose layout is remembered
MAX_SHAPES = 64


class PackedKernels:
    """Packed copies of a kernel, by what oneDNN is told about the call. Layers of one kernel may share one."""

    def __init__(self) -> None:
        self._state: tuple | None = None  # of the kernel that was packed
        self._by_call: OrderedDict[tuple, Any] = OrderedDict()
        self._by_layout: dict[tuple, Any] = {}

    def get(self, weight: Tensor, call: tuple, pack: Callable[..., Any], *arguments) -> Any:
        """The kernel packed for a call; packs it when it was changed, cast or moved, and for new calls.

        Args:
            weight: the kernel as it is stored.
            call: what calls that take the same layout have in common.
            pack: ``pack(weight, *arguments)`` lays it out.
        """
        state = kernel_state(weight)
        if state != self._state:
            self.forget()
            self._state = state
        packed = self._by_call.get(call)
        if packed is None:
            packed = pack(weight, *arguments)
            packed = self._by_layout.setdefault(packed_layout(packed), packed)
            if len(self._by_call) >= MAX_SHAPES:
                self._by_call.popitem(last=False)
            self._by_call[call] = packed
        return packed

    def forget(self) -> None:
        """Free the packed copies; the next call packs anew."""
        self._state = None
        self._by_call.clear()
        self._by_layout.clear()

    def layouts(self) -> list[Any]:
        """The packed copies that are held."""
        return list(self._by_layout.values())

    def __getstate__(self) -> dict:
        # oneDNN's layouts are of this process; a copy lays out its own
        return dict(_state=None, _by_call=OrderedDict(), _by_layout={})


def kernel_state(weight: Tensor) -> tuple:
    """Changes with every write to, cast or move of a kernel."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version, weight.dtype

"""A function made fast for one input size at a time, for the sizes seen last.

CUDA graphs hold for one size; detectors see dozens. The cache keeps the last few within a bound
on number and bytes, and answers every other call with the plain function: a size outside the cache is slow, not wrong.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from mmengine.logging import print_log
from torch import Tensor
from torch.utils._pytree import tree_leaves


@dataclass
class Captured:
    """A function that holds for one input size.

    Attributes:
        run: takes the tensors that were captured for, in the same nesting.
        nbytes (int): memory it holds.
        release: gives the memory back.
    """

    run: Callable
    nbytes: int = 0
    release: Callable = lambda: None


def input_key(args: tuple, strides: bool = True) -> tuple | None:
    """Shape, dtype, device and ``strides`` of all tensors in ``args``; None if there is anything but tensors."""
    leaves: list[Tensor] = tree_leaves(args)
    if not all(isinstance(leaf, Tensor) for leaf in leaves):
        return None
    return tuple((tuple(leaf.shape), leaf.dtype, leaf.stride() if strides else None, leaf.device) for leaf in leaves)


class SizeCache:
    """Calls ``plain`` through functions captured per input size.

    Args:
        plain: the function.
        capture: makes a :class:`Captured` from ``(plain, args)``; whatever it raises makes that size run plainly.
        max_sizes (int): sizes kept; the one used longest ago goes first.
        max_bytes (int, optional): bound on the memory of all sizes together.
        patience (int): how often a size is asked for until another one is given up for it.
        strides (bool): whether what is captured holds for one memory layout of the inputs.

    Raises:
        ValueError: ``max_sizes`` below 1.
    """

    def __init__(
        self,
        plain: Callable,
        capture: Callable[[Callable, tuple], Captured],
        max_sizes: int = 8,
        max_bytes: int | None = None,
        patience: int = 1,
        strides: bool = True,
    ) -> None:
        if max_sizes < 1:
            raise ValueError(f'max_sizes={max_sizes} must be at least 1')
        self.plain, self.capture = plain, capture
        self.max_sizes, self.max_bytes = max_sizes, max_bytes
        self.captured: OrderedDict[tuple, Captured] = OrderedDict()
        self.refused: dict[tuple, str] = {}  # sizes that failed to capture or don't fit, and why
        self.patience, self.strides = patience, strides
        self._asked: Counter = Counter()  # sizes that wait for a place

    def __call__(self, *args, **kwargs):
        key = None if kwargs else input_key(args, self.strides)
        if key is None or key in self.refused:
            return self.plain(*args, **kwargs)
        if key not in self.captured and not self._admit(key, args):
            return self.plain(*args)
        self.captured.move_to_end(key)
        return self.captured[key].run(*args)

    def __getstate__(self) -> dict:
        # what is captured belongs to this process, and to the weights of this model
        return dict(vars(self), captured=OrderedDict(), _asked=Counter())

    @property
    def nbytes(self) -> int:
        """Memory of all captured sizes."""
        return sum(entry.nbytes for entry in self.captured.values())

    def clear(self) -> None:
        """Forget all captured sizes; what failed stays refused."""
        while self.captured:
            self._evict()

    def _admit(self, key: tuple, args: tuple) -> bool:
        self._asked[key] += 1
        if len(self.captured) >= self.max_sizes and self._asked[key] < self.patience:
            return False
        del self._asked[key]
        while len(self.captured) >= self.max_sizes:
            self._evict()
        try:
            entry = self.capture(self.plain, args)
        except Exception as error:  # whatever the driver raises: the plain function still answers
            return self._refuse(key, f'{type(error).__name__}: {str(error)[:200]}')
        if self.max_bytes is not None and entry.nbytes > self.max_bytes:
            entry.release()
            return self._refuse(
                key, f'{entry.nbytes / 2**20:.0f} MiB are more than the bound of {self.max_bytes / 2**20:.0f} MiB'
            )
        self.captured[key] = entry
        while self.max_bytes is not None and self.nbytes > self.max_bytes:
            self._evict()
        return True

    def _evict(self) -> None:
        self.captured.popitem(last=False)[1].release()

    def _refuse(self, key: tuple, reason: str) -> bool:
        if not self.refused:
            print_log(f'input of shape {_shapes(key)} runs without capture ({reason}); said once', logger='current', level=30)
        self.refused[key] = reason
        return False


def _shapes(key: tuple) -> tuple:
    return tuple(leaf[0] for leaf in key)

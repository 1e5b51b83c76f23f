"""CUDA graphs of a forward pass, one per input size."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from .size_cache import Captured, SizeCache

#: share of the device's memory that all graphs of one region may hold
MEMORY_SHARE = 0.2
WARM_UP = 3


def graphed(plain: Callable, max_sizes: int, device: torch.device, max_bytes: int | None = None) -> SizeCache:
    """``plain`` replayed from CUDA graphs.

    Args:
        plain: tensors (nested) to tensors (nested), no synchronisation and no data-dependent shapes inside.
        max_sizes (int): graphs kept.
        device (torch.device): of the tensors.
        max_bytes (int, optional): bound on the graphs' memory. Defaults to ``MEMORY_SHARE`` of the device's.
    """
    if max_bytes is None:
        max_bytes = int(torch.cuda.get_device_properties(device).total_memory * MEMORY_SHARE)
    return SizeCache(plain, capture_graph, max_sizes, max_bytes)


def capture_graph(plain: Callable, args: tuple) -> Captured:
    """Capture ``plain`` for the sizes of ``args``.

    Replaying fills the buffers it was captured with, so inputs are copied in and outputs copied out: the features of one
    image stay what they are when the next image of that size comes.
    """
    inputs = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, args)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles, and picks convolution algorithms, outside of the graph
        for _ in range(WARM_UP):
            plain(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph, before = torch.cuda.CUDAGraph(), torch.cuda.memory_reserved()
    with torch.cuda.graph(graph):
        outputs = plain(*inputs)
    held = max(0, torch.cuda.memory_reserved() - before) + sum(x.nbytes for x in tree_leaves(inputs))

    def run(*args):
        for buffer, value in zip(tree_leaves(inputs), tree_leaves(args)):
            buffer.copy_(value)
        graph.replay()
        return tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, outputs)

    return Captured(run, held, graph.reset)

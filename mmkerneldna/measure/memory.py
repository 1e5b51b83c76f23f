"""Peak memory of a call, the same quantity on every device.

What is stated: what is resident (parameters, buffers, in training the momentum too), plus the largest amount that
torch's allocator held at any moment of the call beyond what it held before. On CUDA that comes from the caching
allocator's statistics, on the CPU from the allocation events of torch's profiler. Not in it: the CUDA context, cuDNN
and oneDNN state outside the allocator, fragmentation, other models in the process; ``nvidia-smi`` and the resident set
size show more.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd.profiler import profile

from .clock import synchronize


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, each once."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def momentum_bytes(model: nn.Module) -> int:
    """Bytes of the state of SGD with momentum, once its first step is done."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)


def peak_memory_mb(call: Callable[[], Any], resident: int, device: str | torch.device = 'cpu') -> float | None:
    """Peak of one call in MB (1e6 bytes); None on a device that can't tell.

    On CUDA this resets torch's peak statistics, as mmengine's own logger does.

    Args:
        call: without arguments; warmed up, so that what it allocates once is there already.
        resident (int): bytes of the model, see :func:`weight_bytes` and :func:`momentum_bytes`.
        device (str): where it runs.
    """
    measure = {'cpu': _cpu_growth, 'cuda': _cuda_growth}.get(torch.device(device).type)
    return None if measure is None else (resident + measure(call, device)) / 1e6


def _cuda_growth(call: Callable[[], Any], device) -> int:
    synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _cpu_growth(call: Callable[[], Any], device) -> int:
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # else the profiler writes two lines to stderr each time
    with profile(profile_memory=True, use_kineto=False) as profiler:
        call()
    held = peak = 0
    events = [event for event in profiler.kineto_results.events() if event.name() == '[memory]']
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak

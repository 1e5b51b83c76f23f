"""Compile a deployed model where a compiler is at hand, in half precision where asked, with CUDA graphs where they help."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from mmengine.logging import print_log
from torch import nn

from ..torch_internals import compiler_errors
from .cuda_graphs import graphed
from .probe import device_of
from .regions import Guarded, Region, regions

#: sizes kept by default
MAX_SIZES = 8
COMPILE_MODES = (False, True, 'dynamic')


def speed_up(model: nn.Module, compile: bool | str, cuda_graph: bool | int) -> nn.Module:
    """Replace the regions of a deployed model by guarded, compiled, graphed ones, in place.

    Args:
        model (nn.Module): deployed, in its final dtype.
        compile, cuda_graph: as in :func:`mmkerneldna.deploy.deploy`.

    Returns:
        nn.Module: ``model``.
    """
    device, dtype = device_of(model), next(model.parameters()).dtype
    for region in list(regions(model)):
        if compile:
            region.replace(partial(_compiled, region=region, mode=compile, device=device))
        if cuda_graph and region.fixed:
            sizes = MAX_SIZES if cuda_graph is True else cuda_graph
            region.replace(partial(graphed, max_sizes=sizes, device=device))
        # post-processing (NMS, RoIAlign) wants fp32; a bare backbone returns what it was deployed in
        out = dtype if region.whole else torch.float32
        region.replace(partial(Guarded, device=device, dtype=dtype, out_dtype=out))
    return model


def _compiled(function: Callable, region: Region, mode: bool | str, device: torch.device) -> Callable:
    dynamic = mode == 'dynamic' or not region.fixed
    # Freezing lets inductor keep kernels in the layout oneDNN wants instead of reordering them at every call.
    options: dict[str, Any] | None = dict(freezing=True) if device.type == 'cpu' else None
    return WithFallback(torch.compile(function, dynamic=dynamic, options=options), function)


class WithFallback:
    """A compiled function that steps aside, with one warning, where it can't be compiled (no C++ compiler, no Triton)."""

    said = False  # of the process, not of one region

    def __init__(self, compiled: Callable, plain: Callable) -> None:
        self.compiled, self.plain, self.failed = compiled, plain, False

    def __call__(self, *args, **kwargs):
        if not self.failed:
            try:
                return self.compiled(*args, **kwargs)
            except compiler_errors() as error:
                self._give_up(error)
        return self.plain(*args, **kwargs)

    def _give_up(self, error: Exception) -> None:
        self.failed = True
        cause = getattr(error, 'inner_exception', error)
        reason = f'{type(cause).__name__}: {(str(cause).strip().splitlines() or [""])[0][:200]}'
        if not WithFallback.said:
            print_log(f'torch.compile failed, running without it: {reason}', logger='current', level=30)
        WithFallback.said = True

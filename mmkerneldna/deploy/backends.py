"""Run backbone, neck and dense heads of a deployed model in another runtime, one compiled instance per input size.

What a runtime computes is compared with torch at each size, on the very input that came, before it is used. A part that a
runtime can't take (an operator it lacks, outputs that are no tensors) and sizes beyond the bound stay in torch.
"""

import copy
import os
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..errors import KernelDNAError
from .gates import kept_in_torch, say_what_is_whole
from .regions import Region, regions_without_gates
from .runtimes import RuntimeMissingError, require
from .sessions import SESSIONS, Traced
from .size_cache import Captured, SizeCache
from .traceable import with_matrix_pools

BACKENDS = ('torch', *SESSIONS, 'auto')
#: modules that a backend needs beside torch
NEEDS = dict(onnxruntime=('onnx', 'onnxruntime'), openvino=('onnx', 'openvino'))
#: sizes kept per part, their share of the machine's memory, and how often a size comes before another one goes for it:
#: compiling takes seconds
MAX_SIZES, MEMORY_SHARE, PATIENCE = 8, 0.2, 20
#: largest deviation from torch, relative to the largest value of an output
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.1}
#: of a measurement: rounds, and seconds after which no other round starts
ROUNDS, SECONDS = 9, 4.0


class BackendError(KernelDNAError, RuntimeError):
    """A runtime that can't run a model as asked."""


def check_backend(backend: str, device: torch.device, dtype: torch.dtype | None) -> None:
    """Refuse a backend that can't be used, before anything is done.

    Raises:
        BackendError: no such backend, or one that does not go with device or dtype.
        RuntimeMissingError: it is not installed.
    """
    if backend not in BACKENDS:
        raise BackendError(f'backend={backend!r} must be one of {BACKENDS}')
    if backend == 'torch':
        return
    if device.type != 'cpu':
        raise BackendError(f"backend={backend!r} runs on the CPU, the model is on {device}; use backend='torch'")
    if dtype not in (None, *TOLERANCES):
        raise BackendError(f'backend={backend!r} computes in {_names(TOLERANCES)}, not in {dtype}')
    if backend == 'onnxruntime' and dtype == torch.bfloat16:
        raise BackendError("onnxruntime computes no convolutions in bf16 on a CPU; use backend='openvino' or 'torch'")
    for module in NEEDS.get(backend, ()):
        require(module)


def plain_twin(model: nn.Module, own_weights: bool) -> nn.Module:
    """A copy with layers of its own that holds the same parameters and buffers, unless it is to have ``own_weights``.

    Nothing in it works in place: oneDNN's graph compiler refuses that in half precision.
    """
    tensors: list[Tensor] = [] if own_weights else [*model.parameters(), *model.buffers()]
    twin = with_matrix_pools(copy.deepcopy(model, {id(tensor): tensor for tensor in tensors}))
    modules: Iterable[Any] = twin.modules()
    for module in modules:
        if getattr(module, 'inplace', False) is True:
            module.inplace = False
    return twin


def run_in_backend(model: nn.Module, twin: nn.Module, backend: str, dtype: torch.dtype, run: Callable[[], object]) -> None:
    """Let a runtime compute the parts of ``model`` whose input sizes follow the image's, in place.

    Args:
        model (nn.Module): deployed.
        twin (nn.Module): from :func:`plain_twin`, of the model before its layers were packed and fused.
        backend (str): ``'onednn'``, ``'onnxruntime'``, ``'openvino'``, or ``'auto'`` for the fastest of them and torch, by
            measurement at each size.
        dtype (torch.dtype): what is computed in.
        run: runs a forward pass of ``model`` on a probe.

    Raises:
        BackendError: no part of the model runs in the runtime.
    """
    names = [name for name in SESSIONS if backend == name or (backend == 'auto' and _usable(name, dtype))]
    max_bytes = int(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') * MEMORY_SHARE)
    caches: dict[str, SizeCache] = {}
    for region, plain in zip(regions_without_gates(model), regions_without_gates(twin)):
        if region.fixed and names:
            part = _Part(region, plain, names, backend == 'auto', dtype, model.deploy_report)
            region.replace(partial(SizeCache, capture=part.capture, max_sizes=MAX_SIZES, max_bytes=max_bytes,
                                   patience=PATIENCE, strides=False))  # fmt: skip
            caches[part.title] = getattr(region.owner, region.name)
            say_what_is_whole(plain.owner, backend)
    if kept_in_torch(model):
        print_log(f'stays in torch: {kept_in_torch(model)}', logger='current')
    with torch.no_grad():
        run()
    _report(model, caches, backend)


def _report(model: nn.Module, caches: dict[str, SizeCache], backend: str) -> None:
    """Say what stays in torch, and forget the probe's sizes."""
    reasons = {title: next(iter(cache.refused.values())) for title, cache in caches.items() if cache.refused}
    for title, reason in reasons.items():
        print_log(f'{title} stays in torch: {reason}', logger='current', level=30)
    if backend != 'auto' and not any(cache.captured for cache in caches.values()):
        reason = next(iter(reasons.values()), kept_in_torch(model) or 'it has no part whose input sizes follow the image')
        raise BackendError(f'no part of this {type(model).__name__} runs in {backend}: {reason}')
    for cache in caches.values():
        cache.clear()
    model.deploy_report.backends.clear()


def _usable(name: str, dtype: torch.dtype) -> bool:
    try:
        check_backend(name, torch.device('cpu'), dtype)
    except (BackendError, RuntimeMissingError) as error:
        print_log(f'not tried by auto: {error}', logger='current')
        return False
    return True


class _Part:
    """Compiles one function of a model, for one input size at a time."""

    def __init__(self, region: Region, plain: Region, names: list[str], choose: bool, dtype: torch.dtype, report: Any) -> None:
        self.plain, self.names, self.choose, self.dtype, self.report = plain, names, choose, dtype, report
        self.title = type(region.owner).__name__ + ('' if region.name == 'forward' else f'.{region.name}')

    def capture(self, function: Callable, args: tuple) -> Captured:
        """The fastest of torch and the runtimes for ``args``, or the one runtime asked for; see :class:`SizeCache`."""
        expected = function(*args)
        traced = Traced(self.plain.owner, self.plain.name, args)
        calls: dict[str, Callable] = dict(torch=function) if self.choose else {}
        for name in self.names:
            try:
                calls[name] = self._checked(traced, name, args, expected)
            except Exception as error:  # the runtimes raise anything
                if not self.choose:
                    raise BackendError(f'{name}: {_first_line(error)}') from error
                print_log(f'{self.title}: {name} does not run it ({_first_line(error)})', logger='current')
        title = f'{self.title} at {", ".join("x".join(map(str, leaf.shape)) for leaf in tree_leaves(args))}'
        taken = self._fastest(title, calls, args) if self.choose else self.names[0]
        self.report.backends[title] = taken
        return Captured(calls[taken], 0 if taken == 'torch' else traced.nbytes)

    def _checked(self, traced: Traced, name: str, args: tuple, expected) -> Callable:
        session = SESSIONS[name](traced, self.dtype)
        dtypes = {leaf.dtype for leaf in tree_leaves(expected)}
        half = torch.bfloat16 in dtypes

        def call(*args):
            outputs = traced.run(session, args)
            return tree_map(lambda output: output.bfloat16(), outputs) if half else outputs

        deviation = largest_deviation(tree_leaves(call(*args)), tree_leaves(expected))
        if not deviation <= TOLERANCES[self.dtype]:
            raise BackendError(f'it deviates from torch by {deviation:.1e} of the largest value')
        return call

    def _fastest(self, title: str, calls: dict[str, Callable], args: tuple) -> str:
        """By the fastest of some rounds in which all take turns: what else the machine does only makes a call slower."""
        times: dict[str, list[float]] = {name: [] for name in calls}
        end = time.perf_counter() + SECONDS * len(calls)
        while len(calls) > 1 and len(times['torch']) < ROUNDS + 1 and time.perf_counter() < end:
            for name, call in calls.items():
                start = time.perf_counter()
                call(*args)
                times[name].append(time.perf_counter() - start)
        best = {name: min(taken[1:] or taken, default=0.0) * 1e3 for name, taken in times.items()}
        taken = min(best, key=best.__getitem__)
        said = ', '.join(f'{name} {ms:.2f} ms' for name, ms in best.items())
        print_log(f'{title}: {said}; {taken} is taken', logger='current')
        return taken


def largest_deviation(outputs: list[Tensor], expected: list[Tensor]) -> float:
    """Relative to the largest value of each output; infinite for other shapes."""
    if [o.shape for o in outputs] != [e.shape for e in expected]:
        return float('inf')
    worst = 0.0
    for output, target in zip(outputs, expected):
        if target.is_floating_point() and target.numel():
            scale = target.abs().max().clamp_min(torch.finfo(target.dtype).tiny)
            ratio = ((output - target).abs().max() / scale).item()
            worst = ratio if ratio != ratio else max(worst, ratio)
    return worst


def _first_line(error: Exception) -> str:
    return ' '.join(str(error).split())[:300] or type(error).__name__


def _names(dtypes) -> str:
    return ' and '.join(str(dtype) for dtype in dtypes)

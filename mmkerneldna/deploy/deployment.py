"""Deploy a trained net: a lean copy that computes the same features."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from mmcv.cnn.bricks.conv2d_adaptive_padding import Conv2dAdaptivePadding
from mmengine.logging import print_log
from torch import fx, nn

from ..anatomy import rewrap, unwrap
from ..errors import KernelDNAError
from ..layers import ChildConv2d
from ..modules import count_parameters, is_plain_conv, to_memory_format
from ..routing.keep import keep_all
from ..torch_internals import has_bf16_instructions, onednn_computes
from .backends import BackendError, check_backend, largest_deviation, plain_twin, run_in_backend
from .bake import bake_children, guard_mmcv_ops, keep_mmcv_ops_in_fp32, lean_gates, unshare_convs
from .compilation import COMPILE_MODES, speed_up
from .fold import fold_batch_norms
from .fuse import fuse_steps
from .packing import forget_layouts, pack_layers
from .probe import Probe, device_of, make_probe
from .roi_align import replace_roi_aligns
from .shared import keep_shared, settle_kernels

#: Largest deviation from the original, relative to the largest feature, that deploying may leave in fp32. Folding rounds
#: weights once (some 1e-6 in a deep net); folding a norm into the wrong conv is off by 1e-2 and more.
TOLERANCE = 1e-4


class DeployError(KernelDNAError, RuntimeError):
    """A model that can't be deployed as asked; it is never deployed wrongly instead."""


@dataclass
class DeployReport:
    """What :func:`deploy` did, as the ``deploy_report`` of the copy.

    Attributes:
        convs_baked (int): children turned into plain convs with a kernel of their own.
        convs_shared (int): children that keep their parent's kernel (``shared=True``).
        not_shared (dict): path of a child that was to and does not -> reason.
        convs_unshared (int): copies made of convs that hung in several places.
        norms_folded (int): BatchNorms folded into a conv.
        norms_left (dict): path of a BatchNorm that stays -> reason.
        others_left (dict): path of a conv that computes its kernel at run time (ODConv, ...) and stays -> its type.
        params_before, params_after (int): unique parameters, deployed parameters.
        steps_fused (int): activations and residual sums that are done by the convolution before them (CPU).
        deviation (float): largest deviation from the original on the probe, relative to the largest feature.
        backends (dict): part and input sizes -> the runtime that computes it there; grows with the sizes that come.
    """

    convs_baked: int = 0
    convs_shared: int = 0
    not_shared: dict[str, str] = field(default_factory=dict)
    convs_unshared: int = 0
    norms_folded: int = 0
    norms_left: dict[str, str] = field(default_factory=dict)
    others_left: dict[str, str] = field(default_factory=dict)
    params_before: int = 0
    params_after: int = 0
    steps_fused: int = 0
    deviation: float = 0.0
    backends: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        shared = f', {self.convs_shared} keep the kernel of another' if self.convs_shared or self.not_shared else ''
        lines = [
            f'deployed: {self.convs_baked} convs baked{shared}, {self.norms_folded} BNs folded, parameters '
            f'{self.params_before:,} (unique) -> {self.params_after:,} (deployed), features off by '
            f'{self.deviation:.1e} of the largest'
        ]
        lines += [f'left as it is: {path}, {reason}' for path, reason in {**self.norms_left, **self.others_left}.items()]
        lines += [f'has a kernel of its own: {path}, {reason}' for path, reason in self.not_shared.items()]
        return '\n'.join(lines)


def deploy(
    model: nn.Module,
    compile: bool | str = False,
    cuda_graph: bool | int = False,
    dtype: torch.dtype | None = None,
    gate: str = 'torch',
    probe: Probe = None,
    backend: str = 'torch',
    shared: bool = False,
    winograd: bool = True,
) -> nn.Module:
    """A lean copy of a model for inference: children baked, norms folded, kernels un-shared, channels_last, compiled.

    On a CPU its convolutions and fully connected layers keep a second copy of their kernels, in oneDNN's layout, and the
    convolutions do the activations and residual sums behind them (see :mod:`.fuse`). The copy is compared with the original
    on a probe input before it is returned. The original is left as it is; one in training mode is deployed as it would
    evaluate.

    Args:
        model (nn.Module): a backbone or a whole mmdet / mmseg model. One inside a wrapper for test-time augmentation is
            deployed there; a wrapper for distributed training is left away. One whose gates leave parts out keeps its gates.
        compile: False; True for torch.compile at fixed sizes (each new size compiles again), ``'dynamic'`` for any size. In
            whole models backbone with neck and the heads are compiled; post-processing stays Python.
        cuda_graph: replay CUDA graphs, one per input size: True, or the number of sizes kept (see :mod:`.cuda_graphs`).
        dtype (torch.dtype, optional): of the copy; defaults to the model's. ``torch.bfloat16`` or ``torch.float16`` where
            the device has it. In a whole model post-processing, and on a CPU mmcv's compiled ops, stay in float32.
        gate: ``'torch'``, or ``'triton'`` for fused kernels on a CUDA device.
        probe: input or function that reaches all parts; see :func:`.probe.make_probe`. Defaults to random images.
        backend: on a CPU ``'onednn'`` (the graph compiler that torch has of oneDNN), ``'onnxruntime'`` or ``'openvino'`` to run
            backbone, neck and dense heads there, ``'auto'`` for what is the fastest here, by measurement at each input size
            (see :mod:`.backends`).
        shared: children without spatial scale and residual keep their parent's kernel at run time, instead of one of their own
            (see :mod:`.shared`); the report says how many do, and why others don't. Runtimes other than torch give each
            convolution a kernel of its own when they load it.
        winograd: on a CPU wide 3x3 convolutions in float32 are computed by Winograd's filtering at sizes where a measurement at
            the first call finds it faster (see :mod:`.winograd`): features differ in the fifth or sixth digit, and such a
            kernel takes four times its memory. False for the same sums on every machine.

    Returns:
        nn.Module: of the model's class, with a ``deploy_report``.

    Raises:
        DeployError: the copy deviates from the original (code that goes around its modules), or dtype, device or gate
            don't go together.
        BackendError: no part of the model runs in the backend, or it does not go with the other arguments.
        RuntimeMissingError: the backend is not installed.
        ProbeError: no random image goes through the model.
    """
    if compile not in COMPILE_MODES:
        raise DeployError(f'compile={compile!r} must be one of {COMPILE_MODES}')
    inner = unwrap(model)
    device = device_of(inner)
    check_device(device, dtype, cuda_graph, gate)
    check_backend(backend, device, dtype)
    if backend != 'torch' and (compile or cuda_graph):
        raise BackendError(f"backend={backend!r} compiles by itself: leave compile out, or use backend='torch'")
    copy = lean_copy(inner, gate, probe, shared)
    to = dtype or next(inner.parameters()).dtype
    twin = plain_twin(copy, own_weights=to != torch.float32) if backend != 'torch' else None
    if device.type == 'cpu' and pack_layers(copy, winograd) and not compile:  # a compiler fuses by itself
        _fuse(copy, make_probe(copy, probe))
    copy.to(to)
    if device.type == 'cpu' and to != torch.float32:
        keep_mmcv_ops_in_fp32(copy)
    fast = speed_up(copy, compile, cuda_graph)
    if twin is not None:
        run = make_probe(twin, probe)
        run_in_backend(fast, twin, backend, to, lambda: run(fast))
    return rewrap(model, fast)


def _fuse(copy: nn.Module, run: Callable) -> None:
    """Let packed convolutions do the steps behind them, align regions in parallel, and check the whole once more."""
    with torch.no_grad(), keep_all(copy):
        expected = run(copy)
        replace_roi_aligns(copy)
        copy.deploy_report.steps_fused = fuse_steps(copy, lambda: run(copy))
        _check_deviation(copy, largest_deviation(run(copy), expected))
    forget_layouts(copy)
    print_log(
        f'{copy.deploy_report.steps_fused} activations and sums are done by the convolutions before them', logger='current'
    )


def lean_copy(model: nn.Module, gate: str = 'torch', probe: Probe = None, shared: bool = False) -> nn.Module:
    """The part of :func:`deploy` that changes layers: a checked copy in fp32, channels_last, without gradients.

    Raises:
        DeployError: the copy deviates from the original.
    """
    if model.training:
        print_log('the model is in training mode; deploying a copy in evaluation mode', logger='current')
    copy: Any = _plain_copy(model)
    report = DeployReport(params_before=count_parameters(copy))
    run = make_probe(copy, probe)
    with torch.no_grad(), keep_all(copy):  # what a gate would leave out must be reached too
        expected = run(copy)
        _bake_and_fold(copy, report, run, gate, shared)
        _to_channels_last(copy.requires_grad_(False))
        report.deviation = largest_deviation(run(copy), expected)
    _check_deviation(model, report.deviation)
    copy.deploy_report = report
    print_log(str(report), logger='current')
    return copy


def _check_deviation(model: nn.Module, deviation: float) -> None:
    if not deviation <= TOLERANCE:
        raise DeployError(
            f'{type(model).__name__} deviates by {deviation:.1e} of its largest feature when deployed, '
            f'more than {TOLERANCE:.0e}: it uses kernels or norms in a way the probe does not show; '
            'please report the model'
        )


def check_device(device: torch.device, dtype: torch.dtype | None, cuda_graph: bool | int, gate: str) -> None:
    """Refuse what the device can't do.

    Raises:
        DeployError: names the value and what is possible.
    """
    if gate not in ('torch', 'triton'):
        raise DeployError(f"gate={gate!r} must be 'torch' or 'triton'")
    if gate == 'triton' and device.type != 'cuda':
        raise DeployError(f"gate='triton' needs a CUDA device, the model is on {device}; use gate='torch'")
    if cuda_graph and device.type != 'cuda':
        raise DeployError(f'cuda_graph={cuda_graph} needs a CUDA device, the model is on {device}')
    # without its own kernels oneDNN emulates half precision, or raises deep inside
    if device.type == 'cpu' and dtype not in (None, torch.float32, torch.float64) and not onednn_computes(dtype):
        raise DeployError(f'this CPU computes no convolutions in {dtype}; deploy in torch.float32')
    if device.type == 'cpu' and dtype == torch.bfloat16 and not has_bf16_instructions():
        print_log('this CPU emulates bfloat16: right, but slower than float32', logger='current', level=30)


def _plain_copy(model: nn.Module) -> nn.Module:
    """Deep copy in fp32 and evaluation mode, without the forward functions that ``efficient_conv_bn_eval`` puts in."""
    copy = deepcopy(model)
    copy.eval()  # not chained: upstream backbones return None from it
    copy.float()
    modules: Iterable[Any] = copy.modules()
    for module in modules:
        forward = vars(module).get('forward')
        if isinstance(getattr(forward, '__self__', None), fx.GraphModule):
            del module.forward
        if getattr(module, 'efficient_conv_bn_eval_forward', None) is not None:
            module.efficient_conv_bn_eval_forward = None
        if getattr(module, 'with_cp', False):
            module.with_cp = False  # activation checkpointing is for gradients
    return copy


def _to_channels_last(module: nn.Module) -> None:
    """All kernels but those of upstream's special convolutions, whose own code may read a kernel as contiguous memory."""
    to_memory_format(module, torch.channels_last)
    for conv in module.modules():
        if (
            isinstance(conv, nn.Conv2d)
            and type(conv).__module__.startswith(('mmcv.', 'mmdet.', 'mmseg.'))
            and not (is_plain_conv(conv) or type(conv) is Conv2dAdaptivePadding)
        ):
            to_memory_format(conv, torch.contiguous_format)


def _bake_and_fold(copy: nn.Module, report: DeployReport, run: Callable, gate: str, shared: bool) -> None:
    if shared:
        report.convs_shared, report.not_shared = keep_shared(copy)
    report.convs_baked = bake_children(copy)
    report.convs_unshared = unshare_convs(copy)
    folding = fold_batch_norms(copy, lambda: run(copy))
    report.norms_folded, report.norms_left = folding.folded, folding.left
    settle_kernels(copy)
    lean_gates(copy, gate == 'triton')
    guard_mmcv_ops(copy)
    report.others_left = _run_time_kernels(copy)
    report.params_after = count_parameters(copy)


def _run_time_kernels(module: nn.Module) -> dict[str, str]:
    """Dynamic convolutions of this package."""
    home = ChildConv2d.__module__.rpartition('.')[0]
    return {
        name: f'{type(m).__name__} computes its kernel at run time'
        for name, m in module.named_modules()
        if type(m).__module__.startswith(home + '.') and hasattr(m, 'kernel_size')
    }

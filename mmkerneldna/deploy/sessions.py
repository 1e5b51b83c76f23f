"""A function of a model, at one input size, in onnxruntime, OpenVINO, or oneDNN's own graph compiler (a part of torch)."""

import copy
import io
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..measure.memory import weight_bytes
from ..torch_internals import onednn_graph
from .runners import OPENVINO_PRECISIONS
from .runtimes import require
from .traceable import traceable_resize
from .writers import OPSET

Run = Callable[[Sequence[Tensor]], list[Tensor]]


class Traced:
    """``getattr(owner, name)`` for the sizes of ``args``, with flat tensors in and out.

    Args:
        owner (nn.Module): of the function, with plain layers, in float32.
        name (str): of the function.
        args: tensors, nested.

    Attributes:
        part (nn.Module): the function.
        inputs (tuple): its flat arguments, float32, contiguous.
        shapes (list): of its flat outputs.

    Raises:
        TypeError: an output is no tensor.
    """

    def __init__(self, owner: nn.Module, name: str, args: tuple) -> None:
        leaves, spec = tree_flatten(args)
        self.part = _Flat(owner, name, spec).eval()
        self.inputs = tuple(map(_plain, leaves))
        with torch.no_grad():
            self.shapes = [tuple(output.shape) for output in self.part(*self.inputs)]

    @cached_property
    def graph(self) -> bytes:
        """ONNX.

        Raises:
            Exception: whatever torch's exporter raises: an operator that ONNX has not.
        """
        buffer: Any = io.BytesIO()  # torch's annotation leaves buffers out
        with torch.no_grad(), traceable_resize(), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            torch.onnx.export(self.part, self.inputs, buffer, opset_version=OPSET, dynamo=False)
        return buffer.getvalue()

    @property
    def nbytes(self) -> int:
        """Memory of its weights, about what a runtime keeps of them."""
        return weight_bytes(self.part)

    def run(self, session: Run, args: tuple):
        """The function's outputs, in its nesting, computed by a session of :data:`SESSIONS`."""
        leaves, _ = tree_flatten(args)
        return tree_unflatten(session([_plain(leaf) for leaf in leaves]), self.part.outputs)


def _plain(leaf: Tensor) -> Tensor:
    return leaf.detach().float().contiguous()


class _Flat(nn.Module):
    """Flat tensors in, flat tensors out."""

    def __init__(self, owner: nn.Module, name: str, spec: Any) -> None:
        super().__init__()
        self.owner, self.name, self.spec = owner, name, spec
        self.outputs: Any = None

    def forward(self, *leaves: Tensor) -> tuple[Tensor, ...]:
        outputs, self.outputs = tree_flatten(getattr(self.owner, self.name)(*tree_unflatten(leaves, self.spec)))
        if not all(isinstance(output, Tensor) for output in outputs):
            raise TypeError('it returns more than tensors')
        return tuple(outputs)


def onnxruntime_session(traced: Traced, dtype: torch.dtype) -> Run:
    """A session with torch's number of threads."""
    runtime = require('onnxruntime')
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    # its threads would go on spinning on the cores that torch computes the next part on
    options.add_session_config_entry('session.force_spinning_stop', '1')
    session = runtime.InferenceSession(traced.graph, options, providers=['CPUExecutionProvider'])
    names = [entry.name for entry in session.get_inputs()]

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        outputs = session.run(None, {name: x.numpy() for name, x in zip(names, inputs)})
        return [torch.from_numpy(output) for output in outputs]

    return run


def openvino_session(traced: Traced, dtype: torch.dtype) -> Run:
    """A compiled model with torch's number of threads, that computes in ``dtype``."""
    openvino = require('openvino')
    settings = {
        'INFERENCE_NUM_THREADS': torch.get_num_threads(),
        'PERFORMANCE_HINT': 'LATENCY',
        'INFERENCE_PRECISION_HINT': OPENVINO_PRECISIONS['bf16' if dtype == torch.bfloat16 else 'fp32'],
    }
    core = openvino.Core()
    request = core.compile_model(core.read_model(traced.graph), 'CPU', settings).create_infer_request()

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        outputs = [torch.empty(shape) for shape in traced.shapes]  # its own buffers are written again by the next call
        for place, x in enumerate(inputs):
            request.set_input_tensor(place, openvino.Tensor(x.numpy(), shared_memory=True))
        for place, output in enumerate(outputs):
            request.set_output_tensor(place, openvino.Tensor(output.numpy(), shared_memory=True))
        request.infer()
        return outputs

    return run


def onednn_session(traced: Traced, dtype: torch.dtype) -> Run:
    """oneDNN's graph compiler, which torch has for traced functions: layers fused and laid out once, at fixed sizes."""
    part = traced.part if dtype == torch.float32 else copy.deepcopy(traced.part).to(dtype)
    graph = onednn_graph(part, tuple(x.to(dtype) for x in traced.inputs))
    return lambda inputs: [output.float() for output in graph([x.to(dtype) for x in inputs])]


SESSIONS: dict[str, Callable[[Traced, torch.dtype], Run]] = dict(
    onednn=onednn_session, onnxruntime=onnxruntime_session, openvino=openvino_session
)

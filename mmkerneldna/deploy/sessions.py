"""A function of a model, traced at one input size, in onnxruntime or OpenVINO."""

import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from .runners import OPENVINO_PRECISIONS
from .runtimes import require
from .traceable import traceable_resize
from .writers import OPSET

Run = Callable[[Sequence[np.ndarray]], list[Tensor]]


class Traced:
    """``getattr(owner, name)`` as an ONNX graph for the sizes of ``args``.

    Args:
        owner (nn.Module): of the function, with plain layers, in float32.
        name (str): of the function.
        args: tensors, nested.

    Attributes:
        graph (bytes): ONNX.
        shapes (list): of the outputs, flat.

    Raises:
        Exception: whatever torch's exporter raises: an operator that ONNX has not, an output that is no tensor.
    """

    def __init__(self, owner: nn.Module, name: str, args: tuple) -> None:
        leaves, spec = tree_flatten(args)
        part = _Flat(owner, name, spec).eval()
        buffer: Any = io.BytesIO()  # torch's annotation leaves buffers out
        with torch.no_grad(), traceable_resize(), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            inputs = tuple(leaf.float().contiguous() for leaf in leaves)
            self.shapes = [tuple(output.shape) for output in part(*inputs)]
            torch.onnx.export(part, inputs, buffer, opset_version=OPSET, dynamo=False)
        self.graph, self._outputs = buffer.getvalue(), part.outputs

    def run(self, session: Run, args: tuple):
        """The function's outputs, in its nesting, computed by a session of :data:`SESSIONS`."""
        leaves, _ = tree_flatten(args)
        return tree_unflatten(session([leaf.detach().float().contiguous().numpy() for leaf in leaves]), self._outputs)


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
    return lambda arrays: [torch.from_numpy(output) for output in session.run(None, dict(zip(names, arrays)))]


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

    def run(arrays: Sequence[np.ndarray]) -> list[Tensor]:
        outputs = [torch.empty(shape) for shape in traced.shapes]  # its own buffers are written again by the next call
        for place, array in enumerate(arrays):
            request.set_input_tensor(place, openvino.Tensor(array, shared_memory=True))
        for place, output in enumerate(outputs):
            request.set_output_tensor(place, openvino.Tensor(output.numpy(), shared_memory=True))
        request.infer()
        return outputs

    return run


SESSIONS: dict[str, Callable[[Traced, torch.dtype], Run]] = dict(onnxruntime=onnxruntime_session, openvino=openvino_session)

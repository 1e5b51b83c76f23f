"""Every name of torch, oneDNN and inductor that is not public: what to look at when a new torch breaks something."""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

#: calls in which torch.jit watches the sizes before it hands a function to a compiler
_PROFILED_CALLS = 2


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` or forward-mode differentiation is going on."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def compiler_errors() -> tuple[type[Exception], ...]:
    """What a compiled function raises where compiling fails, not where its input is wrong."""
    return torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError


def onednn_computes(dtype: torch.dtype) -> bool:
    """Whether oneDNN has convolution kernels for this half precision on this CPU."""
    ops = torch.ops.mkldnn
    supported = {torch.bfloat16: ops._is_mkldnn_bf16_supported, torch.float16: ops._is_mkldnn_fp16_supported}
    return dtype in supported and supported[dtype]()


def has_bf16_instructions() -> bool:
    """Whether this CPU multiplies in bfloat16 by itself; oneDNN emulates it on others that have AVX-512."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def pack_kernel(
    weight: Tensor,
    padding: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    input_shape: Sequence[int],
) -> Tensor:
    """A convolution's kernel in the layout that oneDNN picks for this CPU."""
    plain = weight.detach().contiguous().to_mkldnn()
    pack = torch._C._nn.mkldnn_reorder_conv2d_weight
    # torch's stub of this private function has other arguments
    return pack(plain, padding, stride, dilation, groups, list(input_shape))  # type: ignore[call-arg,arg-type]


def pack_matrix(weight: Tensor, rows: int) -> Tensor:
    """A fully connected layer's matrix in the layout that oneDNN picks for this CPU and about so many rows of input."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), rows)


def packed_linear(input: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear`` with a packed matrix: (R, C_in) -> (R, C_out)."""
    return torch.ops.mkldnn._linear_pointwise(input, packed, bias, 'none', [], '')


def packed_layout(packed: Tensor) -> tuple:
    """What tells two layouts of one kernel apart, by :func:`pack_kernel`, or of plain memory."""
    if not packed.is_mkldnn:
        return tuple(packed.shape)
    return tuple(torch.ops.mkldnn._get_mkldnn_serialized_md(packed).tolist())


def packed_bytes(packed: Tensor) -> int:
    """Memory of a packed kernel."""
    if not packed.is_mkldnn:
        return packed.nbytes
    return torch.ops.mkldnn._nbytes(packed)


def packed_conv(
    input: Tensor,
    packed: Tensor,
    bias,
    padding,
    stride,
    dilation,
    groups: int,
    activation: str,
    scalars: Sequence[float],
    algorithm: str,
) -> Tensor:
    """A convolution with a packed kernel and the activation behind it, by oneDNN's name ('none', 'relu', ...)."""
    return torch.ops.mkldnn._convolution_pointwise(
        input, packed, bias, padding, stride, dilation, groups, activation, list(scalars), algorithm
    )


def packed_conv_add(
    input: Tensor, other: Tensor, packed: Tensor, bias, padding, stride, dilation, groups: int, relu: bool
) -> Tensor:
    """``conv(input) + other``, and ReLU of it where ``relu``."""
    return torch.ops.mkldnn._convolution_pointwise.binary(
        input, other, packed, bias, padding, stride, dilation, groups, 'add', 1.0, 'relu' if relu else None, [], None
    )


def onednn_graph(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """A module compiled by oneDNN's graph compiler for the sizes of ``inputs``.

    Args:
        module: in evaluation mode; takes and returns flat tensors.
        inputs: the example.

    Returns:
        Callable: takes a sequence of tensors like ``inputs``, returns a list; channels_last in and out.
    """
    inputs = tuple(_channels_last(x) for x in inputs)
    before = torch.jit.onednn_fusion_enabled()
    torch.jit.enable_onednn_fusion(True)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter('ignore')  # tracing warns of every size that it takes for a constant
            traced = torch.jit.freeze(torch.jit.trace(module, inputs, check_trace=False))
            for _ in range(_PROFILED_CALLS + 1):
                traced(*inputs)
    finally:
        torch.jit.enable_onednn_fusion(before)

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return list(traced(*(_channels_last(x) for x in inputs)))

    return run


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.contiguous_format)


def write_aot_package(program, path: str) -> None:
    """Compile an exported program ahead of time (AOTInductor) into a file."""
    torch._inductor.aoti_compile_and_package(program, package_path=path)


def read_aot_package(path: str) -> Callable[[Tensor], list[Tensor]]:
    """The function in such a file."""
    return torch._inductor.aoti_load_package(path)

"""Fully connected layers that lay out their matrix once, for CPUs."""

from torch import Tensor, nn

from ..torch_internals import pack_matrix, packed_linear
from .packed import PACKED_DTYPES, may_be_packed
from .packed_kernels import PackedKernels


class PackedLinear(nn.Linear):
    """A fully connected layer for inference on a CPU that keeps a copy of its matrix in oneDNN's layout.

    For inputs of rows, as the heads of a second stage have them (a row per region).

    ``F.linear`` lays the matrix out at every call: 10 ms for 12544 x 1024 on one thread of an Intel Xeon, however many the rows
    (16 rows: 18.9 -> 8.0 ms; 100: 32.5 -> 23.0; 500: 162 -> 138). Inputs of a single row or of more than two axes run as in
    an ``nn.Linear``.

    Args:
        linear (nn.Linear): shares its parameters.
        packed (PackedKernels, optional): of all layers that hold this matrix.
    """

    def __init__(self, linear: nn.Linear, packed: PackedKernels | None = None) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device='meta')
        self.weight, self.bias = linear.weight, linear.bias
        self.packed = packed or PackedKernels()
        self.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        """(R, C_in) -> (R, C_out)."""
        weight = self.weight
        rows = input.shape[0]
        fits = input.dim() == 2 and rows > 1 and input.shape[1] == self.in_features and input.dtype in PACKED_DTYPES
        if not (fits and input.device.type == weight.device.type == 'cpu' and may_be_packed(input, weight)):
            return super().forward(input)
        packed = self.packed.get(weight, (rows.bit_length(),), pack_matrix, rows)
        return packed_linear(input, packed, self.bias)

"""Plain convolutions that lay out their kernel once, for CPUs.

oneDNN computes with kernels in a blocked layout of its own. An ``nn.Conv2d`` holds a plain one, which is laid out anew at
every call: on the 7x7 maps of a ResNet's last stage that takes longer than the convolution.
"""
import torch
from torch import Tensor, nn

from ..modules import is_plain_conv, slots
from .torch_internals import pack_kernel, packed_conv

PACKED_DTYPES = (torch.float32, torch.bfloat16)


class PackedConv2d(nn.Conv2d):
    """A convolution for inference on a CPU that keeps a second copy of its kernel, in oneDNN's layout.

    The copy is made at the first call, and again when the kernel was changed, cast or moved. Calls that oneDNN's packed
    convolution can't take (gradients, another dtype or device, tracing, padding that is not zeros or not given in numbers,
    an empty batch, wrong channels) run as an ``nn.Conv2d``. Returns channels_last. The layout depends on the kernel, not on
    the input size.

    Args:
        conv (nn.Conv2d): shares its parameters.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,
                         conv.groups, conv.bias is not None, conv.padding_mode, device='meta')
        self.weight, self.bias = conv.weight, conv.bias
        self._packed = self._packed_from = None
        self.train(conv.training)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias) -> Tensor:
        if not self._takes(input, weight):
            return super()._conv_forward(input, weight, bias)
        if self._packed_from != _state(weight):
            self._pack(input, weight)
        return packed_conv(input, self._packed, bias, self.padding, self.stride, self.dilation, self.groups)

    def _takes(self, input: Tensor, weight: Tensor) -> bool:
        return (input.dim() == 4 and input.numel() > 0 and input.shape[1] == self.in_channels
                and input.dtype == weight.dtype and input.dtype in PACKED_DTYPES
                and input.device.type == weight.device.type == 'cpu'
                and self.padding_mode == 'zeros' and not isinstance(self.padding, str)
                and not (torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad))
                and not torch.jit.is_tracing() and not torch.compiler.is_compiling())

    def _pack(self, input: Tensor, weight: Tensor) -> None:
        self._packed = pack_kernel(weight, self.padding, self.stride, self.dilation, self.groups, input.shape)
        self._packed_from = _state(weight)

    def __getstate__(self) -> dict:
        # oneDNN's layout is of this process; a copy lays out its own
        return dict(vars(self), _packed=None, _packed_from=None)


def pack_convs(module: nn.Module) -> int:
    """Replace every plain convolution below ``module``, which is on a CPU, by a :class:`PackedConv2d`.

    Nothing is replaced where torch comes without oneDNN, or where oneDNN is switched off.

    Returns:
        int: convolutions packed.
    """
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return 0
    places = [slot for slot in slots(module) if is_plain_conv(slot[2])]
    packed = {id(conv): PackedConv2d(conv) for _, _, conv in places}
    for owner, name, conv in places:
        setattr(owner, name, packed[id(conv)])
    return len(packed)


def _state(weight: Tensor) -> tuple:
    """Changes with every write to, cast or move of a kernel."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version, weight.dtype

"""Which 3x3 convolutions are faster by Winograd's filtering on this machine: by measurement, once per kind of call."""

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .winograd import OUT

#: it never pays off below these
FEWEST_CHANNELS, FEWEST_TILES = 64, 12
#: largest part of the direct time that is taken for faster: what is as fast stays exact to the last digit, and small in memory
MARGIN = 0.9
#: fewest and most calls that are timed of each way; beyond the fewest no more begin after so many seconds
ROUNDS, SECONDS = (2, 6), 0.3

#: kind of call -> whether Winograd's filtering is faster
FASTER: dict[tuple, bool] = {}


def may_pay_off(conv: nn.Conv2d, input: Tensor) -> bool:
    """Whether a convolution is of the kind, and large enough."""
    return (
        conv.kernel_size == (3, 3)
        and conv.stride == conv.dilation == (1, 1)
        and conv.groups == 1
        and min(conv.in_channels, conv.out_channels) >= FEWEST_CHANNELS
        and input.dtype == torch.float32
        and _tiles(input) >= FEWEST_TILES
    )


def _tiles(input: Tensor) -> int:
    return input.shape[0] * math.prod(-(-side // OUT) for side in input.shape[2:])


def kind_of_call(conv: nn.Conv2d, input: Tensor) -> tuple:
    """What calls have in common that share one measurement: threads, channels, and about the size."""
    half_octave = round(2 * math.log2(_tiles(input)))
    return torch.get_num_threads(), conv.in_channels, conv.out_channels, half_octave


def is_faster(direct: Callable[[], object], winograd: Callable[[], object]) -> bool:
    """Whether ``winograd`` takes clearly less time than ``direct``."""
    direct(), winograd()  # kernels are laid out in the first call
    times: tuple[list[float], list[float]] = ([], [])
    while len(times[0]) < ROUNDS[0] or (len(times[0]) < ROUNDS[1] and sum(map(sum, times)) < SECONDS):
        for taken, call in zip(times, (direct, winograd)):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
    return min(times[1]) < MARGIN * min(times[0])

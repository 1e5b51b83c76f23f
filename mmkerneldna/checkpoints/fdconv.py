"""Checkpoints of the authors' FDConv code, rewritten to our nets.

The released detectors and segmenters (Linwei-Chen/FDConv, ``mmdet_custom``) have mmdet's names, and layers that hold the half
spectrum of their kernel, ``dft_weight`` of shape (1, C_out k, C_in k // 2 + 1, 2), over ``min(C_in, C_out) // 2``; stem and
shortcuts are static. They become those of

    dict(type='DynamicConvs', module=dict(type='ResNet', depth=50), include=['layer*.conv*'],
         conv=dict(type='FDConv2d', num_experts=64, released=True))
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from mmengine.logging import print_log
from torch import Tensor

from ..layers.frequencies import CUTOFFS, released_groups
from .reading import plain_state_dict, reads_released, some, split_backbone

_MARK = '.KSM_Global.fc.weight'  # every dynamic layer has it
_BANDS = [f'FBM.freq_weight_conv_list.{i}' for i in range(len(CUTOFFS))]
#: inside a layer, their prefix -> ours
_RENAMED = {
    'KSM_Global.fc': 'global_modulation.fc',
    'KSM_Global.bn': 'global_modulation.norm',
    'KSM_Global.relu': 'global_modulation.act',
    'KSM_Global.channel_fc': 'global_modulation.channel_fc',
    'KSM_Global.filter_fc': 'global_modulation.filter_fc',
    'KSM_Global.spatial_fc': 'global_modulation.spatial_fc',
    'KSM_Global.kernel_fc': 'global_modulation.frequency_fc',
    'KSM_Local.norm': 'local_modulation.norm',
}


class Shape(NamedTuple):
    """Of a layer's kernel: k is square."""

    out_channels: int
    in_channels: int
    side: int

    @property
    def matrix(self) -> tuple[int, int]:
        """The (C_out k, C_in k) matrix whose spectrum is stored."""
        return self.out_channels * self.side, self.in_channels * self.side


def fdconv_setting(state_dict: Mapping[str, Any]) -> dict:
    """Config of the layers that a released checkpoint loads into, for ``DynamicConvs``.

    Raises:
        ValueError: no layer of FDConv, or layers of different numbers of groups.
    """
    state, _ = split_backbone(plain_state_dict(state_dict))
    groups = {len(state[f'{layer}.KSM_Global.kernel_fc.weight']) for layer in _layers(state)}
    if len(groups) != 1:
        raise ValueError(f'the layers have {sorted(groups)} frequency groups; FDConv2d has the same number in all')
    return dict(type='FDConv2d', num_experts=groups.pop(), released=True)


@reads_released
def convert_fdconv(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Turn a checkpoint of the authors' code into the state dict of our net.

    The stored half spectrum holds some frequencies twice, as mirror images, and the inverse DFT takes their mean. A difference
    between the two counts only where they lie in different groups: it is left out, and the log says how large it was.

    Args:
        state_dict: of a detector or segmenter with the authors' ``ResNet_FDConv``, or of that backbone alone, as
            :func:`.reading.reads_released` reads it.

    Returns:
        A state dict that loads strictly into the net above, with :func:`fdconv_setting`'s ``conv``.

    Raises:
        ValueError: no such checkpoint, entries of a layer that are missing or unknown, or an option that FDConv2d does not have
            (``param_ratio``, ``param_reduction``, other bands).
    """
    setting, layers = fdconv_setting(state_dict), _layers(state_dict)
    converted = {key: value for key, value in state_dict.items() if not any(key.startswith(f'{layer}.') for layer in layers)}
    lost = []
    for layer in layers:
        held = {key[len(layer) + 1 :]: value for key, value in state_dict.items() if key.startswith(f'{layer}.')}
        try:
            entries, left_out = _convert_layer(held, setting['num_experts'])
        except KeyError as error:
            raise ValueError(f'{layer} of an FDConv checkpoint has no {error.args[0]}') from error
        except ValueError as error:
            raise ValueError(f'{layer}: {error}') from error
        converted.update({f'{layer}.{key}': value for key, value in entries.items()})
        lost.append(left_out)
    print_log(
        f'FDConv: {len(layers)} layers for conv={setting}; left out of a spectrum at most {max(lost):.1e} of its norm',
        logger='current',
    )
    return converted


def _layers(state: Mapping[str, Tensor]) -> list:
    layers = [key[: -len(_MARK)] for key in state if key.endswith(_MARK)]
    if not layers:
        raise ValueError(
            'not a checkpoint of FDConv: no layer has a KSM_Global; a static checkpoint loads into the swapped net as it is'
        )
    return layers


def _convert_layer(held: dict[str, Tensor], num_groups: int) -> tuple[dict[str, Tensor], float]:
    """A layer's entries under our names, and what its kernel lost."""
    positions = len(held.get('KSM_Global.spatial_fc.weight', [0]))  # a 1x1 kernel has no such head
    out_channels, in_channels = (len(held[f'KSM_Global.{head}.weight']) for head in ('filter_fc', 'channel_fc'))
    shape = Shape(out_channels, in_channels, math.isqrt(positions))
    if 'weight' in held:  # their convert_param=False
        kernel, lost = held.pop('weight'), 0.0
    else:
        kernel, lost = _kernel(held.pop('dft_weight'), shape, num_groups)
    filters = held.pop('KSM_Local.conv.weight')
    entries = {'weight': kernel, 'local_modulation.filters': filters.reshape(shape.out_channels, positions, -1)}
    if positions > 1:
        entries['band_weight'] = torch.cat([held.pop(f'{band}.weight') for band in _BANDS])
        entries['band_bias'] = torch.cat([held.pop(f'{band}.bias') for band in _BANDS])
    return {**entries, **_renamed(held)}, lost


def _renamed(held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    entries, foreign = {}, []
    for key, value in held.items():
        prefix, _, name = key.rpartition('.')
        if prefix in _RENAMED:
            entries[f'{_RENAMED[prefix]}.{name}'] = value.flatten(1) if value.dim() == 4 else value
        elif key == 'bias':
            entries[key] = value
        else:
            foreign.append(key)
    if foreign:
        raise ValueError(f'{len(foreign)} entries that FDConv2d has no place for: {some(foreign)}')
    return entries


def _kernel(spectrum: Tensor, shape: Shape, num_groups: int) -> tuple[Tensor, float]:
    """(1, C_out k, C_in k // 2 + 1, 2) -> (C_out, C_in, k, k), and what it loses relative to the spectrum's norm."""
    rows, cols = shape.matrix
    if spectrum.shape != (1, rows, cols // 2 + 1, 2):
        raise ValueError(
            f'dft_weight has the shape {tuple(spectrum.shape)}, expected {(1, rows, cols // 2 + 1, 2)} of '
            'param_ratio=1 and param_reduction=1'
        )
    theirs = torch.view_as_complex(spectrum[0].contiguous()) * (min(shape[:2]) // 2)
    matrix = torch.fft.irfft2(theirs, s=(rows, cols))
    group = released_groups(rows, cols, num_groups)
    mirrored = group.roll(-1, 0).flip(0)  # row r holds the group of row -r
    columns = [0, cols // 2] if cols % 2 == 0 else [0]
    split = torch.zeros_like(group, dtype=torch.bool)
    split[:, columns] = (group != mirrored)[:, columns]
    lost = (theirs - torch.fft.rfft2(matrix))[split].norm() / theirs.norm().clamp(min=1e-30)
    kernel = matrix.view(shape.out_channels, shape.side, shape.in_channels, shape.side).permute(0, 2, 1, 3)
    return kernel.contiguous(), lost.item()

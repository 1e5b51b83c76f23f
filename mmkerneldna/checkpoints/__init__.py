"""Released checkpoints of other code, rewritten to our layout."""

from .dcd import convert_dcd
from .fdconv import convert_fdconv, fdconv_setting
from .kernel_dna import convert_official
from .kernel_warehouse import convert_kernelwarehouse, kernelwarehouse_setting
from .odconv import convert_odconv
from .reading import backbone_state_dict, plain_state_dict

__all__ = [
    'backbone_state_dict',
    'convert_dcd',
    'convert_fdconv',
    'convert_kernelwarehouse',
    'convert_odconv',
    'convert_official',
    'fdconv_setting',
    'kernelwarehouse_setting',
    'plain_state_dict',
]

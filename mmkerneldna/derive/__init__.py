"""Dense weights become KernelDNA nets."""

from .engine import derive
from .pretrained import derive_if_dense
from .reconstruct import Reconstruction
from .redundancy import Redundancy, measure_redundancy
from .redundancy_plan import redundancy_plan
from .redundancy_policy import redundancy_policy
from .report import DeriveReport
from .source import DeriveError

__all__ = [
    'DeriveError',
    'DeriveReport',
    'Reconstruction',
    'Redundancy',
    'derive',
    'derive_if_dense',
    'measure_redundancy',
    'redundancy_plan',
    'redundancy_policy',
]

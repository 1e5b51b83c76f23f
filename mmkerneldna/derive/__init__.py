"""Dense weights become KernelDNA nets."""
from .engine import derive
from .pretrained import derive_if_dense
from .reconstruct import Reconstruction
from .report import DeriveReport
from .source import DeriveError

__all__ = ['DeriveError', 'DeriveReport', 'Reconstruction', 'derive', 'derive_if_dense']

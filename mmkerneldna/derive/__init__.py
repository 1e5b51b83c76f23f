"""Dense weights become KernelDNA nets."""
from .engine import derive
from .reconstruct import Reconstruction
from .report import DeriveReport
from .source import DeriveError

__all__ = ['DeriveError', 'DeriveReport', 'Reconstruction', 'derive']

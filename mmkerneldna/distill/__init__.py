"""A student learns from a teacher in the usual tools."""

from .distilled import DistilledLoss, build_distilled, prepare_distillation
from .terms import DistillError, Term, parse_terms

__all__ = ['DistillError', 'DistilledLoss', 'Term', 'build_distilled', 'parse_terms', 'prepare_distillation']

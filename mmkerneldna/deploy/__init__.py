"""Deploy: children baked, norms folded, compiled."""

from .deployment import DeployError, DeployReport, deploy, lean_copy

__all__ = ['DeployError', 'DeployReport', 'deploy', 'lean_copy']

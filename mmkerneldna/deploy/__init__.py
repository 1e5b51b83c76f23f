"""Deploy: children baked, norms folded, compiled."""
from .deployment import DeployError, DeployReport, deploy, lean_copy
from .hook import DeployHook

__all__ = ['DeployError', 'DeployHook', 'DeployReport', 'deploy', 'lean_copy']

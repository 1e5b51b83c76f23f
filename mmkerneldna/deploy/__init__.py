"""Deploy: children baked, norms folded, compiled."""
from .deployment import DeployError, DeployReport, deploy

__all__ = ['DeployError', 'DeployReport', 'deploy']

"""KernelDNA and the dynamic convolutions it competes with, for the OpenMMLab 2.x registries."""
from ._dependencies import DependencyError, check_dependencies

check_dependencies()

from . import _config_scopes  # noqa: E402,F401  (before any config names mmseg:: or mmkerneldna::)
from . import layers, sharing, backbones, checkpoints, datasets, deploy, hooks, launch  # noqa: E402,F401
from .version import __version__  # noqa: E402

__all__ = ['DependencyError', '__version__']

"""KernelDNA and the dynamic convolutions it competes with, for the OpenMMLab 2.x registries."""

from ._dependencies import DependencyError, check_dependencies
from ._quiet import quiet_imports

with quiet_imports():
    check_dependencies()

    from . import (
        _config_scopes,
        backbones,
        checkpoints,
        datasets,
        deploy,
        derive,
        distill,
        hooks,
        launch,
        layers,
        routing,
        sharing,
    )
from .version import __version__

__all__ = ['DependencyError', '__version__']

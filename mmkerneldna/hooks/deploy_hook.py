"""Test the deployed model in the place of the trained one."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..anatomy import unwrap
from ..deploy.deployment import deploy


@HOOKS.register_module()
class DeployHook(Hook):
    """Deploys the model once its checkpoint is loaded, so that a test scores and times what would be shipped.

    Args:
        compile, cuda_graph, backend, shared: as in :func:`mmkerneldna.deploy.deploy`.
    """

    def __init__(
        self, compile: bool | str = False, cuda_graph: bool | int = False, backend: str = 'torch', shared: bool = False
    ) -> None:
        self.options: dict[str, Any] = dict(compile=compile, cuda_graph=cuda_graph, backend=backend, shared=shared)

    def before_test(self, runner: Runner) -> None:
        """Replace the runner's model."""
        trained = unwrap(runner.model)
        runner.model = deploy(runner.model, **self.options)
        # In a tuple: a reference, not a submodule. The cost hook counts on the model the copy was made from.
        deployed: Any = unwrap(runner.model)
        deployed.deployed_from = (trained,)

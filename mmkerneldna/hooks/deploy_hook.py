"""Test the deployed model in the place of the trained one."""
from typing import Optional, Union

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..deploy.deployment import deploy


@HOOKS.register_module()
class DeployHook(Hook):
    """Deploys the model once its checkpoint is loaded, so that a test scores and times what would be shipped.

    Args:
        compile, cuda_graph: as in :func:`mmkerneldna.deploy.deploy`.
    """

    def __init__(self, compile: Union[bool, str] = False, cuda_graph: Union[bool, int] = False) -> None:
        self.options = dict(compile=compile, cuda_graph=cuda_graph)

    def before_test(self, runner: Runner) -> None:
        """Replace the runner's model."""
        wrapped: Optional[object] = runner.model if is_model_wrapper(runner.model) else None
        model = runner.model if wrapped is None else wrapped.module
        deployed = deploy(model, **self.options)
        deployed.deployed_from = (model, )  # in a tuple: a reference, not a submodule; the cost hook counts on it
        if wrapped is None:
            runner.model = deployed
        else:
            wrapped.module = deployed

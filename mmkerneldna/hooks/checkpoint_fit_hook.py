"""Refuse a checkpoint of another architecture, whoever loads it."""
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ..anatomy import unwrap
from ..checkpoints.loading import check_architecture


@HOOKS.register_module()
class CheckpointFitHook(Hook):
    """Compares a checkpoint with the model before mmengine loads it, which otherwise only logs differences.

    Args:
        allow_partial (bool): log the differences and load what fits.

    Raises:
        CheckpointError: entries missing, unexpected or of another shape.
    """
    priority = 'VERY_LOW'  # after hooks that rewrite the checkpoint, such as EMA

    def __init__(self, allow_partial: bool = False) -> None:
        self.allow_partial = allow_partial

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Check before the weights go into the model."""
        # A resumed run has to go on where it was, so nothing may differ.
        allow = self.allow_partial and not runner._resume
        check_architecture(unwrap(runner.model), checkpoint, runner._load_from or 'being resumed', allow)

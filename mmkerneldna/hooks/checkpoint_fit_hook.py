"""Refuse a checkpoint of another architecture or of a training that diverged; one of the dense net is derived first."""

from collections.abc import Iterator
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import nn

from ..anatomy import unwrap
from ..checkpoints.loading import check_architecture, compare_state_dict
from ..checkpoints.reading import check_finite
from ..derive import DeriveError, derive_if_dense


@HOOKS.register_module()
class CheckpointFitHook(Hook):
    """Compares a checkpoint with the model before mmengine loads it, which otherwise only logs differences.

    A dense checkpoint for a model with shared kernels becomes one of that model (:func:`mmkerneldna.derive.derive`, weights
    only). Before the first step of a training all parameters are looked at: weights of a backbone come in by its ``init_cfg``.

    Args:
        allow_partial (bool): log the differences and load what fits.

    Raises:
        CheckpointError: entries missing, unexpected or of another shape; parameters that are NaN or infinite.
        DeriveError: a dense checkpoint of another family, depth or width.
    """

    priority = 'VERY_LOW'  # after hooks that rewrite the checkpoint, such as EMA

    def __init__(self, allow_partial: bool = False) -> None:
        self.allow_partial = allow_partial

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Check before the weights go into the model."""
        model = unwrap(runner.model)
        if not runner._resume and self._derived(model, checkpoint, runner._load_from or 'the checkpoint'):
            return
        # A resumed run has to go on where it was, so nothing may differ.
        allow = self.allow_partial and not runner._resume
        source = runner._load_from or 'being resumed'
        check_architecture(model, checkpoint, source, allow)
        state = {key.removeprefix('module.'): value for key, value in checkpoint.get('state_dict', checkpoint).items()}
        check_finite(state, f'checkpoint {source}', dict(model.named_parameters()))

    def before_train(self, runner) -> None:
        """Check what the model starts from."""
        model = unwrap(runner.model)
        sources = ', '.join(dict.fromkeys(_checkpoints(model)))
        if sources:
            parameters = dict(model.named_parameters())
            check_finite(parameters, f'what the model starts from ({sources})', parameters)

    def _derived(self, model, checkpoint: dict, name: str) -> bool:
        """Replace a dense checkpoint's weights by derived ones."""
        if not compare_state_dict(model, checkpoint.get('state_dict', checkpoint)):
            return False
        try:
            derived = derive_if_dense(model, checkpoint, name, partial=self.allow_partial) is not None
        except DeriveError:
            if not self.allow_partial:
                raise
            return False  # of another family: what fits is loaded
        if derived:
            checkpoint['state_dict'] = model.state_dict()
        return derived


def _checkpoints(model: nn.Module) -> Iterator[str]:
    """What the ``init_cfg`` of any part names."""
    for module in model.modules():
        settings: Any = getattr(module, 'init_cfg', None) or []
        for setting in settings if isinstance(settings, (list, tuple)) else [settings]:
            if setting.get('checkpoint'):
                yield setting['checkpoint']

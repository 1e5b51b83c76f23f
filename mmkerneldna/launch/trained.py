"""The model of a config with the weights of a checkpoint, for tools that have no Runner to load it."""

from mmengine.config import Config
from mmengine.runner import load_checkpoint
from torch import nn

from ..checkpoints.loading import check_architecture
from ..measure.benchmark import build_from_config
from .config import unsync_batch_norm


def build_trained(cfg: Config, path: str, checkpoint: dict) -> nn.Module:
    """Build a model and load its weights.

    Args:
        cfg: a whole config; ``SyncBN`` becomes ``BN`` in it where that is needed.
        path: of the checkpoint.
        checkpoint: what was read from there.

    Returns:
        nn.Module: in evaluation mode, on the CPU.

    Raises:
        CheckpointError: it is of another architecture.
    """
    unsync_batch_norm(cfg)
    model = build_from_config(cfg)
    check_architecture(model, checkpoint, path)
    load_checkpoint(model, path, map_location='cpu', strict=True)
    return model.eval()

"""``--distill-from CONFIG CHECKPOINT``: the model of any config learns from a teacher, with losses chosen for its task."""

import argparse
from collections.abc import Sequence
from typing import Any

from mmengine.config import Config, ConfigDict

from ..anatomy import has_proposals
from ..errors import UsageError

ONE_STAGE_PKD = 10.0  # of the paper; the weight for two stages is the default of the loss


def add_distill_argument(parser: argparse.ArgumentParser) -> None:
    """``--distill-from``; see :func:`use_distillation`."""
    parser.add_argument(
        '--distill-from',
        nargs=2,
        metavar=('CONFIG', 'CHECKPOINT'),
        help='learn from this trained model too: PKD on the levels of a detector with an FPN, CWD on the '
        'logits of a segmenter, else MSE on the levels',
    )


def use_distillation(cfg: Config, teacher: Sequence[str] | None) -> None:
    """Put a teacher beside the model of a config, in place.

    Args:
        cfg: any config with a model.
        teacher: name of its config, and its checkpoint; None changes nothing.

    Raises:
        UsageError: the config has a teacher already.
    """
    if teacher is None:
        return
    if cfg.model.get('type') == 'Distilled':
        raise UsageError('--distill-from: the config has a teacher already (model.type is Distilled); name the plain config')
    config, checkpoint = teacher
    cfg.model = ConfigDict(
        type='Distilled', teacher=dict(cfg=config, checkpoint=checkpoint), student=cfg.model, losses=choose_losses(cfg.model)
    )
    imports = cfg.get('custom_imports') or dict(imports=[], allow_failed_imports=False)
    if 'mmkerneldna' not in imports['imports']:
        cfg.custom_imports = dict(imports, imports=[*imports['imports'], 'mmkerneldna'])


def choose_losses(model: dict[str, Any]) -> list[dict[str, Any]]:
    """The losses for the config of a model, see :func:`add_distill_argument`."""
    if 'decode_head' in model:
        return [dict(type='CWD')]
    if not _has_fpn(model.get('neck')):
        return [dict(type='MSE')]
    return [dict(type='PKD') if has_proposals(model) else dict(type='PKD', weight=ONE_STAGE_PKD)]


def _has_fpn(node: Any) -> bool:
    """Whether a neck is, or holds, a feature pyramid; some are wrapped, some are lists."""
    if isinstance(node, (list, tuple)):
        return any(map(_has_fpn, node))
    return isinstance(node, dict) and ('FPN' in str(node.get('type')) or any(map(_has_fpn, node.values())))

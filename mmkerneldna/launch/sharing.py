"""Another sharing plan for the backbone of a config, from the command line."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from ..errors import UsageError


def parse_plan(text: str) -> Any:
    """A plan as a command line states it.

    Args:
        text (str): a name; ``redundancy:0.5`` for the policy of that name and its budget; ``child=parent`` pairs between
            commas; a JSON object, or a .json file that holds one.

    Returns:
        str or dict: what :func:`mmkerneldna.sharing.resolve_plan` takes.

    Raises:
        UsageError: malformed.
    """
    if text.endswith('.json'):
        if not Path(text).is_file():
            raise UsageError(f'--plan {text} does not exist')
        text = Path(text).read_text()
    if text.lstrip().startswith('{'):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise UsageError(f'--plan is no JSON object: {error}') from error
    if text.startswith('redundancy:'):
        return dict(type='redundancy', budget=_number(text))
    if '=' not in text:
        return text
    pairs = [pair.split('=') for pair in text.split(',')]
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise UsageError(f'--plan {text!r} must be a name, child=parent pairs between commas, or JSON')
    return dict(pairs)


def _number(text: str) -> float:
    try:
        return float(text.partition(':')[2])
    except ValueError:
        raise UsageError(f'--plan {text!r} must name the part of the parameters to keep, such as redundancy:0.5') from None


def without_sharing(cfg: Config) -> Config:
    """A copy of a config whose backbone has a kernel for each conv, at the same depth."""
    cfg = deepcopy(cfg)
    if cfg.model.backbone.type.startswith('KDNA'):
        cfg.model.backbone.sharing = None
    elif cfg.model.backbone.type == 'KernelDNA':
        cfg.model.backbone = cfg.model.backbone.module
    return cfg


def set_sharing(cfg: Config, plan: Any | None = None, residual_rank: int | None = None) -> None:
    """Set plan and rank of the residuals in the config's backbone, around a static one by ``KernelDNA``.

    Raises:
        UsageError: a residual for a static backbone without a plan.
    """
    backbone = cfg.model.backbone
    options = {} if residual_rank is None else dict(residual_rank=residual_rank)
    if backbone.type.startswith('KDNA'):
        backbone.update(options if plan is None else dict(options, sharing=plan))
    elif backbone.type == 'KernelDNA':
        backbone.update(options if plan is None else dict(options, plan=plan))
    elif plan is not None:
        cfg.model.backbone = ConfigDict(type='KernelDNA', module=backbone, plan=plan, **options)
    elif options:
        raise UsageError(
            f'--residual-rank needs children, and the backbone of the config, {backbone.type}, has none: add --plan'
        )

"""The teacher: a trained detector or segmenter beside the student, never a part of it."""

import logging
from collections.abc import Collection, Mapping
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.logging import print_log
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from ..anatomy import is_whole
from ..checkpoints.loading import check_architecture
from ..checkpoints.reading import plain_state_dict
from ..checkpoints.remote import fetch
from ..config_files import read_config
from .maps import maps_of, recorded
from .terms import DistillError


class Teacher:
    """A frozen model in evaluation mode, built when it is first needed and kept out of state dicts, parameters and copies.

    Args:
        cfg: name of a config file, ``package::folder/name.py``, a config, or the config of a model.
        checkpoint (str): its weights: a file, a short name or an address.

    Raises:
        DistillError: one of the two is missing.
    """

    def __init__(self, cfg: str | Mapping[str, Any] | None = None, checkpoint: str | None = None) -> None:
        if not cfg or not checkpoint:
            raise DistillError('a teacher needs its config and its weights: teacher=dict(cfg=..., checkpoint=...)')
        self.cfg, self.checkpoint = cfg, str(checkpoint)
        self._model: nn.Module | None = None

    def __deepcopy__(self, memo: dict) -> 'Teacher':
        return self  # averaged copies of a student share its teacher, which never changes

    def __str__(self) -> str:
        return f'{self.cfg if isinstance(self.cfg, str) else type(self.model).__name__} ({self.checkpoint})'

    @property
    def model(self) -> nn.Module:
        """The model with its weights.

        Raises:
            UsageError: its config can't be read.
            CheckpointError: its weights can't be, or are another net's.
            DistillError: it is no detector or segmenter.
        """
        if self._model is None:
            self._model = self._load()
        return self._model

    def maps(self, inputs: Tensor, kinds: Collection[str]) -> dict[str, tuple[Tensor, ...]]:
        """Its maps of preprocessed images.

        Args:
            inputs (Tensor): (N, 3, H, W), normalised as the student gets them.
            kinds: ``'levels'``, ``'logits'`` or both.
        """
        model = self.model.to(inputs.device)
        with torch.no_grad(), recorded(model, kinds) as results:
            if 'logits' in kinds:
                model(inputs, None, mode='tensor')
            else:
                model.extract_feat(inputs)
        return maps_of(results, 'teacher')

    def _load(self) -> nn.Module:
        model = self._build()
        state = plain_state_dict(fetch(self.checkpoint), f'checkpoint {self.checkpoint} of the teacher')
        check_architecture(model, state, f'{self.checkpoint} of the teacher')
        model.load_state_dict(state, strict=False)
        print_log(
            f'distilling from the teacher {type(model).__name__} of {self.checkpoint}', logger='current', level=logging.INFO
        )
        return model.requires_grad_(False).eval()

    def _build(self) -> nn.Module:
        cfg = read_config(self.cfg) if isinstance(self.cfg, str) else self.cfg
        part = cfg if 'type' in cfg else cfg.get('model')
        if not isinstance(part, dict):
            told = self.cfg if isinstance(self.cfg, str) else ', '.join(map(str, cfg))
            raise DistillError(f'the config of the teacher has no model: {told}')
        part = ConfigDict(part).copy()
        if cfg.get('data_preprocessor') is not None:  # the Runner does the same
            part.setdefault('data_preprocessor', cfg['data_preprocessor'])
        scope = cfg.get('default_scope') or getattr(DefaultScope.get_current_instance(), 'scope_name', 'mmengine')
        # the student's run draws the random numbers it would draw without a teacher
        with DefaultScope.overwrite_default_scope(scope), torch.random.fork_rng(devices=[]):
            model = MODELS.build(part)
        if not is_whole(model):
            raise DistillError(f'the teacher must be a detector or a segmenter, {type(model).__name__} is not')
        return model

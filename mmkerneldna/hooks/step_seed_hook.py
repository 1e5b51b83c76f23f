"""Random draws of a model that depend on (seed, rank, iteration) alone."""

import random

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


def seed_all(*key: int) -> None:
    """Seed Python, numpy and torch from a tuple of integers; different tuples give unrelated streams."""
    seed = int(np.random.SeedSequence([k % 2**32 for k in key]).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@HOOKS.register_module()
class StepSeedHook(Hook):
    """Seeds the model's random draws by the iteration, so that a resumed run repeats an uninterrupted one."""

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Seed from (seed, rank, iteration)."""
        seed_all(runner.seed, get_rank(), runner.iter)

"""Measure a model in the middle of its training without leaving a trace."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[nn.Module]:
    """Model in eval mode without gradients; afterwards every module's mode and all random states are as before.

    The mode is put back module by module: ``model.train()`` would wake up a BN that ``norm_eval`` or ``frozen_stages``
    had put to sleep, and ``model.eval()`` can't be undone by it.
    """
    modes = [(module, module.training) for module in model.modules()]
    with _random_states_kept(), torch.no_grad():
        try:
            model.eval()
            yield model
        finally:
            for module, training in modes:
                module.training = training


@contextmanager
def _random_states_kept() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)

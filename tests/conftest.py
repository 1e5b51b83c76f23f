import random

import numpy as np
import pytest
import torch
from hypothesis import settings
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

import mmkerneldna  # noqa: F401  (registers everything)

# the same examples in every run, however slow the machine is
settings.register_profile('suite', derandomize=True, deadline=None)
settings.load_profile('suite')


@pytest.fixture(autouse=True)
def no_second_attempts(monkeypatch):
    """A test does not wait for an idle machine: a disturbed measurement is marked at once."""
    monkeypatch.setattr('mmkerneldna.measure.latency.ATTEMPTS', 1)


def _with_subclasses(cls):
    return [cls] + [below for child in cls.__subclasses__() for below in _with_subclasses(child)]


@pytest.fixture(autouse=True)
def fresh_state():
    """Each test starts from the same seeds; its scope, logger and visualizer, global in mmengine, end with it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    for cls in (DefaultScope, MMLogger, *_with_subclasses(Visualizer)):
        cls._instance_dict.clear()

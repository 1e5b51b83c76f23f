import ast
import gc
import os
import random

# Before torch. Of what it compiles only the numbers are looked at: so without vector instructions, without optimisation of the
# calls around the kernels, and in this process, for workers import torch first.
os.environ.setdefault('TORCHINDUCTOR_VEC_ISA_OK', '0')
os.environ.setdefault('AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL', 'O0')
os.environ.setdefault('TORCHINDUCTOR_COMPILE_THREADS', '1')

import numpy as np
import pytest
import torch
import yapf.yapflib.yapf_api
from hypothesis import settings
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

import mmkerneldna  # noqa: F401  (registers everything)

# the same examples in every run, however slow the machine is
settings.register_profile('suite', derandomize=True, deadline=None)
settings.load_profile('suite')


def _unformatted(code, **style):
    """In the place of yapf, by which mmengine formats a config each time it prints one, a second each: Python it must be."""
    ast.parse(code)
    return code, True


yapf.yapflib.yapf_api.FormatCode = _unformatted

# what is imported stays: the collector need not walk through these million objects again and again
gc.freeze()


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

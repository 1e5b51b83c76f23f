import pytest
import torch
from mmengine.registry import DefaultScope

import mmkerneldna  # noqa: F401  (registers everything)


@pytest.fixture(autouse=True)
def fresh_state():
    """Each test starts from the same seed, and what it sets as default scope ends with it."""
    torch.manual_seed(0)
    yield
    DefaultScope._instance_dict.clear()

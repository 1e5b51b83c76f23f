import os

import pytest
from mmengine.runner.checkpoint import CheckpointLoader


@pytest.fixture
def loaders():
    """Leave mmengine's loaders and torch's switches as they were."""
    schemes, environment = dict(CheckpointLoader._schemes), dict(os.environ)
    yield
    CheckpointLoader._schemes.clear()
    CheckpointLoader._schemes.update(schemes)
    os.environ.clear()
    os.environ.update(environment)

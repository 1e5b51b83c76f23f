import pytest

from mmkerneldna.datasets import ShapesSpec, generate_shapes


@pytest.fixture(scope='session')
def shapes(tmp_path_factory):
    """A generated set of a dozen small images."""
    spec = ShapesSpec(train_images=12, val_images=2, min_side=96, max_side=128)
    return generate_shapes(tmp_path_factory.mktemp('tiny') / 'shapes', spec)

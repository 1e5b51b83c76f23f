"""The generated shapes data set and checks of any data set before training."""

from ..errors import DataError
from .checks import check_data
from .data_root import override_data_root
from .shapes import ShapesSpec, describe_shapes, generate_shapes
from .shapes_art import CLASSES as SHAPES_CLASSES
from .shapes_chance import chance_scores
from .shapes_dataset import ShapesDetDataset, ShapesSegDataset

__all__ = [
    'SHAPES_CLASSES',
    'DataError',
    'ShapesDetDataset',
    'ShapesSegDataset',
    'ShapesSpec',
    'chance_scores',
    'check_data',
    'describe_shapes',
    'generate_shapes',
    'override_data_root',
]

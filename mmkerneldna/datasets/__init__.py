"""The generated shapes data set and checks of any data set before training."""
from .errors import DataError
from .shapes import ShapesSpec, describe_shapes, generate_shapes
from .shapes_dataset import ShapesDetDataset, ShapesSegDataset
from .shapes_scene import CLASSES as SHAPES_CLASSES

__all__ = [
    'DataError', 'SHAPES_CLASSES', 'ShapesDetDataset', 'ShapesSegDataset', 'ShapesSpec', 'describe_shapes',
    'generate_shapes'
]

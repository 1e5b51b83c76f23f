"""The shapes set as mmdet and mmseg datasets, registered in the root registry like everything else here."""

from mmdet.datasets import CocoDataset
from mmengine.registry import DATASETS
from mmseg.datasets import BaseSegDataset

from .shapes_art import CLASSES

_PALETTE = [(230, 80, 60), (60, 130, 230), (60, 180, 90), (240, 190, 40), (150, 90, 200), (60, 190, 190)]


@DATASETS.register_module()
class ShapesDetDataset(CocoDataset):
    """Boxes and instance masks of the six shapes; see :mod:`mmkerneldna.datasets.shapes` for the files."""

    METAINFO = dict(classes=CLASSES, palette=_PALETTE)


@DATASETS.register_module()
class ShapesSegDataset(BaseSegDataset):
    """Semantic masks: background and the six shapes, no ignored label."""

    METAINFO = dict(classes=('background',) + CLASSES, palette=[(40, 40, 40)] + _PALETTE)

"""The detector and the segmenter of the shapes configs with an eighth of their channels."""

from pathlib import Path

from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[1]
DETECTOR = 'configs/shapes/faster-rcnn_kdna-r18_fpn_shapes.py'
SEGMENTER = 'configs/shapes/upernet_kdna-r18_shapes.py'
NARROW = {
    DETECTOR: {
        'model.backbone.base_channels': 8,
        'model.backbone.stem_channels': 8,
        'model.neck.in_channels': [8, 16, 32, 64],
        'model.neck.out_channels': 16,
        'model.rpn_head.in_channels': 16,
        'model.rpn_head.feat_channels': 16,
        'model.roi_head.bbox_roi_extractor.out_channels': 16,
        'model.roi_head.bbox_head.in_channels': 16,
        'model.roi_head.bbox_head.fc_out_channels': 32,
    },
    SEGMENTER: {
        'model.backbone.base_channels': 8,
        'model.backbone.stem_channels': 8,
        'model.decode_head.in_channels': [8, 16, 32, 64],
        'model.decode_head.channels': 8,
        'model.auxiliary_head.in_channels': 32,
        'model.auxiliary_head.channels': 8,
    },
}


def narrow_config(config, like=None):
    """A config, based on the same as ``like``, with a narrow model."""
    cfg = Config.fromfile(ROOT / config)
    cfg.merge_from_dict(NARROW[like or config])
    return cfg

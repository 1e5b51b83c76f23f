"""The input size a config states."""

import re

from mmengine.config import Config


def size_from_config(cfg: Config) -> tuple[int, int] | None:
    """H, W that a config's models are meant for.

    A segmenter's crop size; else the ``scale`` of the test pipeline's resizing, which is the larger image where the
    aspect ratio is kept; None if the config states neither.
    """
    crop = cfg.get('crop_size')
    if crop is not None:
        return tuple(crop)
    for transform in cfg.get('test_pipeline') or []:
        scale = transform.get('scale') if 'Resize' in transform['type'] else None
        if isinstance(scale, (tuple, list)) and isinstance(scale[0], int):
            return scale[1], scale[0]
    return None


def parse_size(text: str) -> tuple[int, int]:
    """H, W from a command line: ``224`` is a square, ``800x1344`` is H x W.

    Raises:
        ValueError: neither.
    """
    found = re.fullmatch(r'(\d+)(?:x(\d+))?', text.strip().lower())
    height, width = (int(side) for side in (found.group(1), found.group(2) or found.group(1))) if found else (0, 0)
    if not (height and width):
        raise ValueError(f"size '{text}' is neither N nor HxW in pixels, such as 224 or 800x1344")
    return height, width

"""The input size a config states."""
from typing import Optional, Tuple

from mmengine.config import Config


def size_from_config(cfg: Config) -> Optional[Tuple[int, int]]:
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


def parse_sizes(tokens) -> list:
    """Sizes from a command line: ``224`` square, ``800 1344`` one H W, ``800x1344`` the same, any number of them.

    Plain numbers pair up as H W; a single one is a square.

    Raises:
        ValueError: a token that is no size, or an odd number of plain ones.
    """
    sizes, plain = [], []
    for token in tokens:
        parts = token.lower().split('x')
        if len(parts) > 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
            raise ValueError(f"size '{token}' is neither a number nor HxW")
        if len(parts) == 2:
            sizes.append((int(parts[0]), int(parts[1])))
        else:
            plain.append(int(token))
    if len(plain) == 1:
        plain *= 2
    if len(plain) % 2:
        raise ValueError(f'plain sizes pair up as H W, and {plain} is an odd number of them; write HxW')
    return sizes + list(zip(plain[::2], plain[1::2]))

"""Pictures side by side, each with a caption below."""

from collections.abc import Sequence

import numpy as np
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

GAP = 6
BACKGROUND, INK = (255, 255, 255), (30, 30, 30)


def side_by_side(pictures: Sequence[np.ndarray], captions: Sequence[Sequence[str]]) -> np.ndarray:
    """One picture of all.

    Args:
        pictures: (H, W, 3), RGB; brought to the height of the first.
        captions: lines for each; written as large as they fit the width, within limits.

    Returns:
        ndarray: (H', W', 3), RGB, even sides (video codecs ask for them).
    """
    height = pictures[0].shape[0]
    panels = [_captioned(_to_height(picture, height), lines) for picture, lines in zip(pictures, captions)]
    tallest = max(panel.height for panel in panels)
    width = sum(panel.width for panel in panels) + GAP * (len(panels) - 1)
    canvas = Image.new('RGB', (width + width % 2, tallest + tallest % 2), BACKGROUND)
    left = 0
    for panel in panels:
        canvas.paste(panel, (left, 0))
        left += panel.width + GAP
    return np.asarray(canvas)


def _to_height(picture: np.ndarray, height: int) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(picture))
    return image if image.height == height else image.resize((max(1, round(image.width * height / image.height)), height))


def _captioned(image: Image.Image, lines: Sequence[str]) -> Image.Image:
    lines, font = _fitting(lines, image.width - 2 * GAP)
    step = round(font.size * 1.3)
    panel = Image.new('RGB', (image.width, image.height + step * len(lines) + 2 * GAP), BACKGROUND)
    panel.paste(image, (0, 0))
    draw = ImageDraw.Draw(panel)
    for number, line in enumerate(lines):
        draw.text((GAP, image.height + GAP + number * step), line, fill=INK, font=font)
    return panel


def _fitting(lines: Sequence[str], width: int) -> tuple[list[str], ImageFont.FreeTypeFont]:
    """The largest font from 20 down to 10 pixels in which all lines fit; below that lines are cut."""
    path = findfont('DejaVu Sans')
    for size in range(20, 9, -1):
        font = ImageFont.truetype(path, size)
        if all(font.getlength(line) <= width for line in lines):
            return list(lines), font
    return [_cut(line, width, font) for line in lines], font


def _cut(line: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    while line and font.getlength(line + '…') > width:
        line = line[:-1]
    return line + '…'

"""What the three examples share: a picture in, a drawing out. Needs numpy and Pillow only."""

import argparse

import numpy as np
from PIL import Image, ImageDraw

COLOURS = [(230, 60, 60), (60, 160, 230), (90, 190, 80), (240, 170, 40), (160, 90, 210), (60, 200, 190), (130, 130, 60)]


def arguments(doc):
    """FILE PICTURE --out --score-thr."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('file', help='written by tools/export.py --end2end')
    parser.add_argument('picture')
    parser.add_argument('--out', default='out.png')
    parser.add_argument('--score-thr', type=float, default=0.3)
    return parser.parse_args()


def read_picture(path, meta):
    """The picture as it is drawn on, and as the file takes it: (1, 3, H, W), uint8, BGR.

    Train and test pipelines resize pictures to a size of their own; for the scores of the evaluation do so here, too. A file
    for one size gets the picture squeezed to it.
    """
    picture = Image.open(path).convert('RGB')
    scaled = picture.resize(meta['size'][::-1], Image.BILINEAR) if meta['size'] else picture
    pixels = np.asarray(scaled)[:, :, ::-1].transpose(2, 0, 1)
    return picture, np.ascontiguousarray(pixels[None])


def draw(picture, images, outputs, meta, score_thr):
    """The picture with what was found in its first and only image."""
    if meta['task'] == 'segmentation':
        return draw_map(picture, outputs['labels_map'][0])
    scale = picture.width / images.shape[3], picture.height / images.shape[2]
    for place, (*corners, score) in enumerate(outputs['dets'][0].tolist()):
        label = int(outputs['labels'][0][place])
        if label < 0 or score < score_thr:
            continue
        box = [corner * scale[i % 2] for i, corner in enumerate(corners)]
        colour = COLOURS[label % len(COLOURS)]
        if meta['task'] == 'instance':
            picture = draw_mask(picture, outputs['masks'][0][place], box, colour, meta['mask_threshold'])
        pen = ImageDraw.Draw(picture)
        pen.rectangle(box, outline=colour, width=2)
        name = meta['classes'][label] if meta['classes'] else str(label)
        pen.text((box[0] + 3, box[1] + 2), f'{name} {score:.2f}', fill=colour)
        print(f'{name} {score:.3f} at {", ".join(f"{side:.1f}" for side in box)}')
    return picture


def draw_mask(picture, mask, box, colour, threshold):
    """A mask is a small map of probabilities on its box: resize it to the box, then compare with the threshold."""
    left, top, right, bottom = (round(side) for side in box)
    if right <= left or bottom <= top:
        return picture
    mask = Image.fromarray(mask.astype(np.float32)).resize((right - left, bottom - top), Image.BILINEAR)
    shade = Image.fromarray(np.uint8(np.asarray(mask) >= threshold) * 110)
    full = Image.new('L', picture.size)
    full.paste(shade, (left, top))
    return Image.composite(Image.new('RGB', picture.size, colour), picture, full)


def draw_map(picture, labels):
    """Colours of the labels over the picture."""
    colours = np.array(COLOURS, np.uint8)[labels % len(COLOURS)]
    return Image.blend(picture, Image.fromarray(colours).resize(picture.size, Image.NEAREST), 0.5)

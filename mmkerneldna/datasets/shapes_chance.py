"""What guessing scores on a generated shapes set: the floor that trained models are held against."""

import contextlib
import io
import json
from pathlib import Path

import cv2
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .shapes import read_mask
from .shapes_art import CLASSES


def chance_scores(root: str | Path) -> dict[str, float]:
    """Score two guessers that know the statistics of the validation set but do not look at the image.

    The detector's guess is the true boxes and classes of the *next* image; the segmenter's is the mask of the next
    image or background everywhere, whichever scores more.

    Returns:
        ``{'box AP': 0-1, 'mIoU': 0-100}``.
    """
    root = Path(root)
    return {
        'box AP': _neighbour_box_ap(root / 'annotations/instances_validation.json'),
        'mIoU': _guessed_miou(sorted((root / 'annotations/validation').glob('*.png'))),
    }


def _neighbour_box_ap(path: Path) -> float:
    ids = [image['id'] for image in json.loads(path.read_text())['images']]
    moved = dict(zip(ids, ids[1:] + ids[:1]))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        guesses = [
            dict(image_id=moved[ann['image_id']], category_id=ann['category_id'], bbox=ann['bbox'], score=1.0)
            for ann in truth.dataset['annotations']
        ]
        evaluator = COCOeval(truth, truth.loadRes(guesses), 'bbox')
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return float(evaluator.stats[0])


def _guessed_miou(paths) -> float:
    masks = [read_mask(path) for path in paths]
    neighbours = [
        cv2.resize(guess, mask.shape[::-1], interpolation=cv2.INTER_NEAREST)
        for mask, guess in zip(masks, masks[1:] + masks[:1])
    ]
    return max(_miou(masks, neighbours), _miou(masks, [np.zeros_like(mask) for mask in masks]))


def _miou(masks, guesses) -> float:
    count = len(CLASSES) + 1
    pairs = np.sum(
        [
            np.bincount(mask.ravel().astype(int) * count + guess.ravel(), minlength=count**2)
            for mask, guess in zip(masks, guesses)
        ],
        axis=0,
    ).reshape(count, count)
    shared = pairs.diagonal()
    return float(100 * np.mean(shared / np.maximum(pairs.sum(0) + pairs.sum(1) - shared, 1)))

"""Predictions of trained models on pictures and videos, by upstream's inferencers."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from mmengine.infer import BaseInferencer

from ..checkpoints.loading import check_architecture, read_checkpoint
from ..datasets.image_checks import read_image
from ..errors import UsageError
from ..measure.clock import synchronize
from .config import load_config, unsync_batch_norm

IMAGES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif', '.tiff', '.webp')
VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v')


@dataclass(frozen=True)
class Prediction:
    """What one model found in one picture.

    Attributes:
        picture (ndarray): painted, (H, W, 3), RGB.
        facts (dict): for JSON. Detection: ``objects``, each with class, score, box (x1, y1, x2, y2 in pixels) and perhaps a
            COCO RLE mask. Segmentation: ``classes``, the share of the pixels that each has.
        label_map (ndarray, optional): (H, W), class indices.
        ms (float): of the network with its preprocessing on the device and its post-processing.
    """

    picture: np.ndarray
    facts: dict[str, Any]
    label_map: np.ndarray | None
    ms: float


class Predictor:
    """A trained model behind one call.

    Args:
        config: a file or ``package::folder/name.py``.
        checkpoint: a file.
        device: such as ``cpu`` or ``cuda:0``.
        score_thr: objects below are neither drawn nor listed.

    Raises:
        UsageError, CheckpointError: one of them can't be read, or they do not fit each other.
    """

    def __init__(self, config: str, checkpoint: str, device: str = 'cpu', score_thr: float = 0.3) -> None:
        cfg = load_config(config)
        unsync_batch_norm(cfg)
        self.segments = cfg.get('default_scope') == 'mmseg'
        self.score_thr, self.device = score_thr, device
        weights = read_checkpoint(checkpoint)
        self.inferencer = _inferencer_class(self.segments)(cfg, checkpoint, device=device, show_progress=False)
        check_architecture(self.inferencer.model, weights, checkpoint)
        self._clock = _Clock(self.inferencer, device)
        self._warm: set = set()

    def __call__(self, image: np.ndarray) -> Prediction:
        """Predict on one picture, (H, W, 3), BGR. The first of each size is run twice: only the second call is timed."""
        settings: dict[str, Any] = dict(return_vis=True)
        if not self.segments:
            settings.update(no_save_vis=True, pred_score_thr=self.score_thr)
        for _ in range(1 if image.shape in self._warm else 2):
            found = self.inferencer(image, **settings)
        self._warm.add(image.shape)
        picture, result = _only(found['visualization']), _only(found['predictions'])
        if self.segments:
            return Prediction(picture, self._areas(result), result.astype(np.uint8), self._clock.ms)
        return Prediction(picture, self._objects(result), None, self._clock.ms)

    @property
    def classes(self) -> Sequence[str]:
        """Their names, in the order of the labels."""
        return self.inferencer.model.dataset_meta['classes']

    def _objects(self, result: dict) -> dict[str, Any]:
        masks = result.get('masks') or [None] * len(result['labels'])
        rows = zip(result['labels'], result['scores'], result['bboxes'], masks)
        objects = [
            {'class': self.classes[label], 'score': score, 'box': box, 'mask': mask}
            for label, score, box, mask in rows
            if score >= self.score_thr
        ]
        return dict(objects=[{key: value for key, value in item.items() if value is not None} for item in objects])

    def _areas(self, label_map: np.ndarray) -> dict[str, Any]:
        labels, counts = np.unique(label_map, return_counts=True)
        return dict(classes={self._class_name(label): count / label_map.size for label, count in zip(labels, counts)})

    def _class_name(self, label: int) -> str:
        return self.classes[label] if label < len(self.classes) else f'label {label}'


def _only(results):
    """mmdet returns a list for one picture, mmseg what is in it."""
    return results[0] if isinstance(results, list) else results


def _inferencer_class(segments: bool) -> type:
    """Imported late: mmdet's and mmseg's ``apis`` import every data set."""
    if segments:
        from mmseg.apis import MMSegInferencer

        return MMSegInferencer
    from mmdet.apis import DetInferencer

    return DetInferencer


class _Clock:
    """Times ``forward`` of an inferencer."""

    def __init__(self, inferencer: BaseInferencer, device: str) -> None:
        self.ms, forward = 0.0, inferencer.forward

        def timed(*args, **kwargs):
            synchronize(device)
            start = time.perf_counter()
            result = forward(*args, **kwargs)
            synchronize(device)
            self.ms = (time.perf_counter() - start) * 1e3
            return result

        inferencer.forward = timed


@dataclass(frozen=True)
class Source:
    """A picture or a video.

    Attributes:
        path (Path): the file.
        video (bool): whether it is a video.
    """

    path: Path
    video: bool = field(default=False)

    def frames(self) -> Iterator[np.ndarray]:
        """The picture, or the frames one after the other; (H, W, 3), BGR."""
        if not self.video:
            yield cast(np.ndarray, cv2.imread(str(self.path), cv2.IMREAD_COLOR))  # it was read before
            return
        capture = cv2.VideoCapture(str(self.path))
        try:
            while True:
                there, frame = capture.read()
                if not there:
                    return
                yield frame
        finally:
            capture.release()

    def rate(self) -> float:
        """Frames per second of a video; 25 where it does not say."""
        capture = cv2.VideoCapture(str(self.path))
        rate = capture.get(cv2.CAP_PROP_FPS)
        capture.release()
        return rate if 0 < rate < 1000 else 25.0


def find_sources(paths: Sequence[str]) -> list[Source]:
    """Files, and the pictures and videos in folders, checked before any model is built.

    Raises:
        UsageError: a path does not exist, is neither picture nor video, can't be decoded, or a folder holds none.
    """
    sources = [source for path in paths for source in _sources_at(Path(path))]
    for source in sources:
        fault = _video_fault(source) if source.video else read_image(str(source.path)).fault
        if fault:
            raise UsageError(f'{source.path}: {fault}')
    return sources


def find_pictures(paths: Sequence[str], tool: str) -> list[Source]:
    """:func:`find_sources` without the videos, for a tool that takes none.

    Raises:
        UsageError: as :func:`find_sources`, and if no picture is left.
    """
    pictures = [source for source in find_sources(paths) if not source.video]
    if not pictures:
        raise UsageError(f'{tool} takes pictures; there is none among the inputs')
    return pictures


def _sources_at(path: Path) -> list[Source]:
    if path.is_dir():
        found = sorted(item for item in path.iterdir() if item.suffix.lower() in (*IMAGES, *VIDEOS))
        if not found:
            raise UsageError(f'folder {path} holds no picture and no video ({", ".join((*IMAGES, *VIDEOS))})')
        return [Source(item, item.suffix.lower() in VIDEOS) for item in found]
    if not path.is_file():
        raise UsageError(f'input {path} does not exist')
    if path.suffix.lower() not in (*IMAGES, *VIDEOS):
        raise UsageError(f'input {path} is neither a picture nor a video by its name ({", ".join((*IMAGES, *VIDEOS))})')
    return [Source(path, path.suffix.lower() in VIDEOS)]


def _video_fault(source: Source) -> str | None:
    return None if next(source.frames(), None) is not None else 'no frame can be read from this video'


def output_names(sources: Sequence[Source]) -> list[tuple[Source, str]]:
    """A name for the results of each source: its stem, or where two have the same one its path in words."""
    stems = [source.path.stem for source in sources]
    return [
        (source, source.path.stem if stems.count(source.path.stem) == 1 else '_'.join(source.path.parts).replace('/', ''))
        for source in sources
    ]

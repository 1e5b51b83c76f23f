"""The generated *shapes* data set on disk: COCO JSON for detectors, ADE20K-style masks for segmenters.

    ROOT/
      images/{training,validation}/000000.jpg          160-256 px a side, sizes vary
      annotations/{training,validation}/000000.png     uint8: 0 background, 1-6 the classes; no pixel is ignored
      annotations/instances_{training,validation}.json COCO: boxes and polygons of the *visible* part, iscrowd 0
      dataset.json                                      what was asked for, and a digest of the annotations

ADE20K's own label 0 means "other" and is ignored (``reduce_zero_label=True``). Here background is a class to be
learned, so label 0 stays: seven classes for a segmenter, ``reduce_zero_label=False``. COCO category ids equal the mask
labels.
``image['case']`` names the hard case an image was made for and ``annotation['visibility']`` the visible share.
"""

import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..errors import DataError
from .mask_polygons import mask_to_polygons
from .shapes_art import CLASSES
from .shapes_scene import CASES, Instance, Scene, draw_scene

SPLITS = ('training', 'validation')
HARD_SHARE = 0.05  # of each hard case in each split
_MANIFEST = 'dataset.json'
_VERSION = 1  # raise it when the drawing changes: an older set on disk is then not taken for this one


@dataclass(frozen=True)
class ShapesSpec:
    """What to generate. Equal specs give byte-identical annotations.

    Attributes:
        seed: seeds every image, by (seed, split, index), so a longer set begins with the shorter one's drawings.
        train_images: number of training images.
        val_images: number of validation images.
        min_side: smallest image side in pixels, at least 96.
        max_side: largest image side in pixels.
        scale: of the shapes in (0, 1]; 0.25 makes all of them small.
    """

    seed: int = 0
    train_images: int = 320
    val_images: int = 80
    min_side: int = 160
    max_side: int = 256
    scale: float = 1.0

    def __post_init__(self):
        if min(self.train_images, self.val_images) < 1 or not 96 <= self.min_side <= self.max_side:
            raise DataError(f'cannot generate {self}: expected at least one image in each split and 96 <= min_side <= max_side')
        if not 0 < self.scale <= 1:
            raise DataError(f'cannot generate shapes of scale {self.scale}: it must lie in (0, 1]')


def hard_cases(count: int) -> list[str]:
    """The case of each of ``count`` images: ``HARD_SHARE`` of each hard one (at least one if there is room), spread."""
    each = max(1, round(HARD_SHARE * count)) if count >= 2 * len(CASES[1:]) else 0
    cases = ['plain'] * count
    for slot in range(each * len(CASES[1:])):
        cases[(slot * count) // (each * len(CASES[1:]))] = CASES[1 + slot % len(CASES[1:])]
    return cases


def generate_shapes(
    root: str | Path,
    spec: ShapesSpec = ShapesSpec(),
    track: Callable[[Iterable, str], Iterable] = lambda images, description: images,
) -> Path:
    """Write the data set, or keep the identical one that is there.

    Everything is written to a temporary folder beside ``root`` which is renamed at the end: ``root`` is either
    whole or absent.

    Args:
        root: folder to make.
        spec: what to generate.
        track: wraps the loop over the images of a split, to show progress; called with (images, description).

    Returns:
        ``root``.

    Raises:
        DataError: ``root`` holds something else, another or a damaged shapes set; nothing is overwritten.
    """
    root = Path(root)
    if root.exists():
        _check_identical(root, spec)
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f'.{root.name}-', dir=root.parent))
    try:
        temporary.chmod(0o755)
        digests = {split: _write_split(temporary, split, spec, track) for split in SPLITS}
        manifest = dict(version=_VERSION, spec=asdict(spec), digests=digests)
        (temporary / _MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + '\n')
        temporary.rename(root)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return root


def _check_identical(root: Path, spec: ShapesSpec) -> None:
    fix = 'name another folder, or remove this one to generate it anew'
    manifest_path = root / _MANIFEST
    if not manifest_path.is_file():
        raise DataError(f'{root} exists and holds no generated shapes set (no {_MANIFEST} in it): {fix}')
    try:
        found = json.loads(manifest_path.read_text())
        digests = {split: found['digests'][split] for split in SPLITS}
    except (KeyError, TypeError, ValueError):
        raise DataError(f'{root} is damaged: {_MANIFEST} in it is not what was generated; {fix}') from None
    wanted = dict(asdict(spec), version=_VERSION)
    have = dict(dict(scale=1.0), **found.get('spec', {}), version=found.get('version'))  # older sets do not state a scale
    differing = [f'{key} {have.get(key)} (asked for {wanted[key]})' for key in wanted if have.get(key) != wanted[key]]
    if differing:
        raise DataError(f'{root} holds another shapes set: {", ".join(differing)}; {fix}')
    for split in SPLITS:
        if not _annotations(root, split).is_file() or split_digest(root, split) != digests[split]:
            raise DataError(
                f'{root} is damaged: the {split} annotations or their number of images are not what was generated; {fix}'
            )


def _annotations(root: Path, split: str) -> Path:
    return root / f'annotations/instances_{split}.json'


def read_mask(path: Path) -> np.ndarray:
    """The labels of a mask as they were written, (H, W)."""
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if labels is None:
        raise DataError(f'the mask {path} cannot be read; generate the shapes again')
    return labels


def split_digest(root: Path, split: str) -> str:
    """SHA-256 over a split's JSON, masks and image names (not image bytes: JPEG encoders differ between builds)."""
    digest = hashlib.sha256(_annotations(root, split).read_bytes())
    for mask in sorted((root / 'annotations' / split).glob('*.png')):
        digest.update(read_mask(mask).tobytes())
    for image in sorted((root / 'images' / split).glob('*.jpg')):
        digest.update(image.name.encode())
    return digest.hexdigest()


def _write_split(root: Path, split: str, spec: ShapesSpec, track: Callable) -> str:
    for kind in ('images', 'annotations'):
        (root / kind / split).mkdir(parents=True)
    cases = hard_cases(spec.train_images if split == 'training' else spec.val_images)
    coco: dict[str, Any] = dict(
        info=dict(description=f'generated shapes, {split}, seed {spec.seed}, version {_VERSION}'),
        categories=[dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)],
        images=[],
        annotations=[],
    )
    for index, case in enumerate(track(cases, f'shapes, {split}')):
        rng = np.random.RandomState([spec.seed, SPLITS.index(split), index])
        height, width = rng.randint(spec.min_side, spec.max_side + 1, 2)
        _write_image(root, split, index, draw_scene(rng, height, width, case, spec.scale), coco)
    path = _annotations(root, split)
    path.write_text(json.dumps(coco, sort_keys=True, separators=(',', ':')))
    return split_digest(root, split)


def _write_image(root: Path, split: str, index: int, scene: Scene, coco: dict[str, list]) -> None:
    height, width = scene.image.shape[:2]
    semantic = np.zeros((height, width), np.uint8)
    for instance in scene.instances:
        semantic[instance.mask] = instance.label + 1
        coco['annotations'].append(_annotation(instance, len(coco['annotations']) + 1, index + 1))
    name = f'{index:06d}.jpg'
    coco['images'].append(dict(id=index + 1, file_name=name, height=height, width=width, case=scene.case))
    _imwrite(root / 'images' / split / name, scene.image, [cv2.IMWRITE_JPEG_QUALITY, 92])
    _imwrite(root / 'annotations' / split / f'{index:06d}.png', semantic, [])


def _imwrite(path: Path, image: np.ndarray, flags: list[int]) -> None:
    if not cv2.imwrite(str(path), image, flags):
        raise OSError(f'could not write {path}: is the disk full?')


def _annotation(instance: Instance, annotation_id: int, image_id: int) -> dict:
    ys, xs = np.nonzero(instance.mask)
    x, y = int(xs.min()), int(ys.min())
    return dict(
        id=annotation_id,
        image_id=image_id,
        category_id=instance.label + 1,
        bbox=[x, y, int(xs.max()) + 1 - x, int(ys.max()) + 1 - y],
        area=int(instance.mask.sum()),
        segmentation=mask_to_polygons(instance.mask),
        iscrowd=0,
        visibility=round(instance.visibility, 4),
    )


def describe_shapes(root: str | Path) -> dict[str, dict[str, int]]:
    """Count images, objects and hard cases of each split.

    Returns:
        ``{'training': {'images': 320, 'objects': 1312, 'tiny': 16, ...}, 'validation': {...}}``
    """
    summary = {}
    for split in SPLITS:
        coco = json.loads(_annotations(Path(root), split).read_text())
        cases = Counter(image['case'] for image in coco['images'])
        summary[split] = dict(
            images=len(coco['images']), objects=len(coco['annotations']), **{case: cases[case] for case in CASES[1:]}
        )
    return summary

"""Detection data: what would corrupt a training is one ``error:`` line; what mmdet would drop without a word is one warning
that counts and lists it.
"""

import json
import logging
import math
import re
from copy import deepcopy

import pytest
from bad_input import refused_data
from mmengine.config import Config
from tiny_runs import DETECTOR, ROOT

from mmkerneldna.datasets import annotation_checks, check_data, coco_checks, override_data_root

pytestmark = pytest.mark.usefixtures('no_old_loggers')

# A change to the first annotation, the first image or the whole file, and what is said of it.
FATAL_ANNOTATIONS = {
    'NaN': (dict(bbox=[1, math.nan, 5, 5]), r'annotation 1 has the box \[1, nan, 5, 5\]; expected .*four finite numbers'),
    'infinite': (dict(bbox=[1, 1, math.inf, 5]), r'annotation 1 has the box \[1, 1, inf, 5\]'),
    'far beyond any image': (dict(bbox=[1, 1, 1e30, 5]), r'annotation 1 has the box \[1, 1, 1e\+30, 5\]'),
    'three numbers': (dict(bbox=[1, 1, 5]), r'annotation 1 has the box \[1, 1, 5\]'),
    'words': (dict(bbox=['1', '1', '5', '5']), r"annotation 1 has the box \['1', '1', '5', '5'\]"),
    'no box': (dict(bbox=None), r'annotations\[0\] is .* and has no bbox'),
    'no area': (dict(area=None), r'annotations\[0\] is .* and has no area'),
    'NaN area': (dict(area=math.nan), r'annotation 1 has the area nan'),
    'no image_id': (dict(image_id=None), r'annotations\[0\] is .* and has no image_id'),
    'a list of images': (dict(image_id=[1]), r'annotation 1 has the image_id \[1\]; expected a number'),
    'id of another': (dict(id=2), r'1 annotations have an id that another one has: 2'),
}
FATAL_IMAGES = {
    'no width': (dict(width=None), r'images\[0\] is .* and has no width'),
    'no pixels': (dict(height=0), r'image 1 \(000000\.jpg\) is \d+x0 pixels'),
    '10^9 pixels wide': (dict(width=10**9), r'image 1 \(000000\.jpg\) is 1000000000x\d+ pixels'),
    'another size than the file': (dict(width=11, height=12), r'000000\.jpg is \d+x\d+ pixels large, not 11x12'),
    'a name that leaves the root': (
        dict(file_name='../../../../secret.jpg'),
        r'1 file names .* leave the data set.*secret\.jpg',
    ),
    'an absolute name': (dict(file_name='/etc/passwd'), r'leave the data set.*/etc/passwd'),
    'a number for a name': (dict(file_name=7), r'image 1 has the file_name 7; expected a name'),
    'an empty name': (dict(file_name=''), r"image 1 has the file_name ''"),
    'id of another': (dict(id=2), r'1 images have an id that another one has: 2'),
}
FATAL_FILES = {
    'categories with one name': (
        lambda coco: coco['categories'][1].update(name='circle'),
        r'several categories are called circle',
    ),
    'categories with one id': (
        lambda coco: coco['categories'][1].update(id=1),
        r'1 categories have an id that another one has: 1',
    ),
    'a category without name': (lambda coco: coco['categories'][1].pop('name'), r'categories\[1\] is .* has no name'),
    'images as a dict': (lambda coco: coco.update(images={'1': {}}), r'images is a dict, expected a list'),
    'annotations of words': (lambda coco: coco.update(annotations=['a']), r"annotations\[0\] is 'a' and has no id, image_id"),
    'no image known': (
        lambda coco: [a.update(image_id=-1) for a in coco['annotations']],
        r'none of its \d+ annotations can be used: \d+ of an image_id that no image has \(annotation 1: -1, ',
    ),
}
MASKS = {
    'no mask': (dict(segmentation=[]), r'annotation 1 has the segmentation \[\], and masks are trained'),
    'NaN in a polygon': (
        dict(segmentation=[[1, 1, math.nan, 5, 5, 5]]),
        r'annotation 1 has the polygon \[1, 1, nan, 5, 5, 5\]',
    ),
    'RLE of another size': (dict(segmentation=dict(size=[2, 3], counts=[6])), r'annotation 1 has an RLE of size \[2, 3\]'),
}
DROPPED = {
    'negative size': (dict(bbox=[30, 30, -5, 5]), r'1 with a side below one pixel \(annotation 1: \[30, 30, -5, 5\]\)'),
    'no width': (dict(bbox=[30, 30, 0, 5]), r'1 with a side below one pixel \(annotation 1: \[30, 30, 0, 5\]\)'),
    'no area': (dict(area=0), r'1 without area \(annotation 1: 0\)'),
    'outside': (dict(bbox=[500, 30, 5, 5]), r'1 outside of their image \(annotation 1: \[500, 30, 5, 5\]\)'),
    'unknown category': (dict(category_id=99), r'1 of a category_id that no category has \(annotation 1: 99\)'),
    'unknown image': (dict(image_id=99), r'1 of an image_id that no image has \(annotation 1: 99\)'),
}


@pytest.fixture(scope='module')
def detector():
    return Config.fromfile(ROOT / DETECTOR)


@pytest.fixture
def spoilt(shapes, tmp_path, detector):
    """Config of a detector whose training annotations were changed."""

    def make(change, with_mask=False):
        coco = json.loads((shapes / 'annotations/instances_training.json').read_text())
        change(coco)
        (tmp_path / 'spoilt.json').write_text(json.dumps(coco))
        cfg = deepcopy(detector)
        override_data_root(cfg, str(shapes))
        cfg.train_dataloader.dataset.ann_file = str(tmp_path / 'spoilt.json')
        if with_mask:
            cfg.train_dataloader.dataset.pipeline[1].with_mask = True
        return cfg

    return make


def cases(**tables):
    return [pytest.param(key, *case, id=f'{key}: {name}') for key, table in tables.items() for name, case in table.items()]


@pytest.mark.parametrize(
    'key, change, words', cases(annotations=FATAL_ANNOTATIONS, images=FATAL_IMAGES, file=FATAL_FILES, masks=MASKS)
)
def test_detection_data_that_would_corrupt_a_training(key, change, words, spoilt, capfd):
    entries = 'annotations' if key == 'masks' else key
    spoil = change if key == 'file' else lambda coco: coco[entries][0].update(change)
    line = refused_data(capfd, spoilt(spoil, with_mask=key == 'masks'))
    assert re.search(words, line), line
    assert 'spoilt.json' in line or '.jpg' in line


@pytest.mark.parametrize('change, words', DROPPED.values(), ids=DROPPED)
def test_detection_data_that_mmdet_drops(change, words, spoilt, monkeypatch):
    said = []
    monkeypatch.setattr(annotation_checks, 'print_log', lambda message, **kwargs: said.append((message, kwargs['level'])))
    assert check_data(spoilt(lambda coco: coco['annotations'][0].update(change)), ('train',)) == []
    ((message, level),) = said
    assert level == logging.WARNING and re.search(r'spoilt\.json: 1 of \d+ annotations are dropped: ' + words, message), message


@pytest.mark.parametrize(
    'text, words',
    [
        ('', r'is not JSON'),
        ('[' * 100000, r'is not JSON'),
        ('[1, 2]', r'has no images'),
        ('{"images": [], "annotations": [], "categories": {}}', r'categories is a dict'),
    ],
    ids=['empty', 'nested', 'list', 'dict'],
)
def test_annotation_file_that_is_something_else(text, words, shapes, tmp_path, detector, capfd):
    (tmp_path / 'odd.json').write_text(text)
    cfg = deepcopy(detector)
    override_data_root(cfg, str(shapes))
    cfg.train_dataloader.dataset.ann_file = str(tmp_path / 'odd.json')
    line = refused_data(capfd, cfg)
    assert re.search(words, line) and 'odd.json' in line, line
    cfg.train_dataloader.dataset.ann_file = str(tmp_path)
    assert re.search(r'annotation file \S+ cannot be read \(Is a directory\)', refused_data(capfd, cfg))


def test_classes_in_another_order_than_the_file(spoilt, monkeypatch):
    """mmdet takes the file's order for the labels, so names under drawn boxes would be swapped."""
    said = []
    monkeypatch.setattr(coco_checks, 'print_log', lambda message, **kwargs: said.append(message))
    check_data(spoilt(lambda coco: coco['categories'].reverse()), ('train',))
    (message,) = said
    assert re.search(r'numbers the classes as \S+spoilt\.json lists them \(.*circle\), the config lists circle', message)

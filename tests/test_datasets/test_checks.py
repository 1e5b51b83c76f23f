"""Each kind of bad data gives its one message, through plain and wrapped data sets, before anything is trained."""

import json
import shutil
from copy import deepcopy
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config

from mmkerneldna.datasets import DataError, ShapesSpec, check_data, generate_shapes, image_checks, override_data_root
from mmkerneldna.datasets.image_checks import listing, read_image, spread

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
DET_JSON = 'annotations/instances_training.json'


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    spec = ShapesSpec(train_images=9, val_images=8, min_side=96, max_side=110)
    return generate_shapes(tmp_path_factory.mktemp('checks') / 'set', spec)


@pytest.fixture
def root(shapes, tmp_path):
    return shutil.copytree(shapes, tmp_path / 'set')


def detector(root, **train):
    return _config('shapes/faster-rcnn_r18_fpn_shapes.py', root, train)


def segmenter(root, **train):
    return _config('shapes/upernet_r18_shapes.py', root, train)


def _config(name, root, train):
    cfg = deepcopy(_parsed(name))
    override_data_root(cfg, str(root))
    cfg.work_dir = str(root.parent / 'work')
    cfg.train_dataloader.dataset.update(train)
    return cfg


@lru_cache(None)
def _parsed(name):
    return Config.fromfile(CONFIGS / name)


def edit_json(path, change):
    coco = json.loads(path.read_text())
    change(coco)
    path.write_text(json.dumps(coco))


def truncate(path):
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2])


def refused(cfg, *words, **kwargs):
    with pytest.raises(DataError) as error:
        check_data(cfg, **kwargs)
    message = str(error.value)
    assert '\n' not in message
    for word in words:
        assert str(word) in message, message


@pytest.mark.parametrize('config', [detector, segmenter])
def test_good_data_pass(config, root):
    cfg = config(root)
    before = cfg.pretty_text
    assert check_data(cfg, ('train', 'val', 'test')) == []
    assert cfg.pretty_text == before


def test_missing_annotation_file(root):
    (root / DET_JSON).unlink()
    refused(detector(root), 'train: annotation file', root / DET_JSON, 'does not exist', 'set ann_file')


@pytest.mark.parametrize('config', [detector, segmenter])
def test_missing_shapes_say_how_to_make_them(config, tmp_path):
    root = tmp_path / 'my shapes'
    refused(
        config(root), f'train: the generated shapes set {root}', f"tools/make_shapes.py --data-root '{root}'", 'data_root=DIR'
    )


def test_missing_evaluator_annotation_file(root):
    cfg = detector(root)
    cfg.val_evaluator.ann_file = str(root / 'nowhere.json')
    refused(cfg, 'val: annotation file', 'nowhere.json', 'CocoMetric', "val_evaluator's ann_file")


@pytest.mark.parametrize(
    'text, words',
    [
        ('{"images": [', ('is not JSON', 'restore')),
        ('{"images": []}', ('has no annotations, categories', 'expected a COCO JSON')),
        ('[1]', ('has no images, annotations, categories',)),
    ],
)
def test_unreadable_annotation_file(root, text, words):
    (root / DET_JSON).write_text(text)
    refused(detector(root), DET_JSON, *words)


@pytest.mark.parametrize('config, key', [(detector, 'img'), (segmenter, 'img_path'), (segmenter, 'seg_map_path')])
def test_missing_folder(root, config, key):
    prefix = dict(config(root).train_dataloader.dataset.data_prefix, **{key: 'wrong/place'})
    refused(config(root, data_prefix=prefix), f'folder {root}/wrong/place does not exist', f'data_prefix=dict({key}=')


def test_missing_list_of_images(root):
    refused(segmenter(root, ann_file='train.txt'), f'annotation file {root}/train.txt does not exist', 'leave it out')


def test_categories_that_match_no_class(root):
    edit_json(root / DET_JSON, lambda coco: [c.update(name=c['name'].upper()) for c in coco['categories']])
    refused(
        detector(root),
        '6 of the 6 classes',
        "'circle' (nearest: 'CIRCLE')",
        'no class of the config: CIRCLE, SQUARE',
        'metainfo=dict(classes=',
    )


def test_one_class_without_category(root):
    edit_json(root / DET_JSON, lambda coco: coco['categories'][3].update(name='stars'))
    refused(detector(root), '1 of the 6 classes', "'star' (nearest: 'stars')", 'no class of the config: stars')


def test_coco_classes_by_default_on_other_data(root):
    refused(detector(root, type='CocoDataset'), '80 of the 80 classes', "'person'", 'and 72 more')


def test_classes_given_as_a_string(root):
    refused(detector(root, metainfo=dict(classes='star')), "is the string 'star'", "classes=('star', ) with the comma")


def test_subset_of_the_categories_is_fine(root):
    assert check_data(detector(root, metainfo=dict(classes=('star', 'cross')))) == []


@pytest.mark.parametrize('key', ['images', 'annotations'])
def test_empty_detection_set(root, key):
    edit_json(root / DET_JSON, lambda coco: coco[key].clear())
    refused(detector(root), f' 0 {key}', 'expected at least one of each')


def test_empty_segmentation_set_names_the_endings_there_are(root):
    refused(segmenter(root, img_suffix='.tif'), "ends in '.tif'", "'.jpg' (9)", 'set img_suffix')


def test_labels_outside_the_classes(root):
    path = root / 'annotations/training/000004.png'
    cv2.imwrite(str(path), np.array([[0, 7], [200, 255]], np.uint8))
    refused(segmenter(root), '1 of 9 masks hold labels outside the 7 classes: 7, 200', path, 'expected 0-6 or 255')


def test_labels_are_judged_after_reduce_zero_label(root):
    for path in (root / 'annotations/training').iterdir():
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_UNCHANGED) + 1)
    assert check_data(segmenter(root, reduce_zero_label=True)) == []
    refused(segmenter(root), 'labels outside the 7 classes: 7', 'or set reduce_zero_label=True')


def test_labels_are_judged_after_the_label_map(root):
    assert check_data(segmenter(root, metainfo=dict(classes=('background', 'star')))) == []
    refused(segmenter(root, type='BaseSegDataset', metainfo=dict(classes=('background', 'star'))), 'outside the 2 classes')


def test_colour_mask(root):
    path = root / 'annotations/training/000004.png'
    cv2.imwrite(str(path), np.zeros((5, 5, 3), np.uint8) + np.arange(5, dtype=np.uint8)[:, None])
    refused(segmenter(root), path, 'colour image (expected one channel')


@pytest.mark.parametrize(
    'config, harm, word',
    [
        (detector, truncate, 'corrupt'),
        (segmenter, truncate, 'corrupt'),
        (detector, lambda path: path.write_bytes(b''), 'an empty file'),
        (segmenter, lambda path: path.write_bytes(b'no image'), 'not an image'),
        (detector, Path.unlink, 'missing'),
    ],
)
def test_unusable_image_is_named(root, config, harm, word):
    path = root / 'images/training/000002.jpg'
    harm(path)
    refused(config(root), '1 images cannot be used', f'{path} is {word}', '--corrupt-images skip')


def test_missing_mask_is_named_with_its_image(root):
    (root / 'annotations/training/000002.png').unlink()
    refused(segmenter(root), 'images/training/000002.jpg: its mask', 'annotations/training/000002.png is missing')


def test_skip_leaves_the_image_out_of_data_set_and_evaluator(root):
    bad = [root / 'images/training/000002.jpg', root / 'images/validation/000001.jpg']
    for path in bad:
        truncate(path)
    cfg = detector(root)
    assert check_data(cfg, on_corrupt='skip') == [str(path) for path in bad]
    left = json.loads(Path(cfg.val_evaluator.ann_file).read_text())
    assert Path(cfg.val_evaluator.ann_file).parent == root.parent / 'work/data_check'
    assert cfg.val_dataloader.dataset.ann_file == cfg.val_evaluator.ann_file
    assert [image['file_name'] for image in left['images']] == [f'{i:06d}.jpg' for i in (0, 2, 3, 4, 5, 6, 7)]
    assert {ann['image_id'] for ann in left['annotations']} <= {image['id'] for image in left['images']}
    assert check_data(cfg) == []  # what is left is good


def test_skip_writes_a_list_for_a_segmentation_folder(root):
    truncate(root / 'annotations/training/000002.png')
    cfg = segmenter(root)
    assert check_data(cfg, on_corrupt='skip') == [str(root / 'images/training/000002.jpg')]
    names = Path(cfg.train_dataloader.dataset.ann_file).read_text().split()
    assert names == [f'{i:06d}' for i in (0, 1, 3, 4, 5, 6, 7, 8)]
    assert check_data(cfg) == []


def test_nothing_left_is_an_error(root):
    for path in (root / 'images/training').iterdir():
        truncate(path)
    refused(detector(root), 'no image is left', on_corrupt='skip')
    refused(segmenter(root), 'no image is left', on_corrupt='skip')


@pytest.mark.parametrize(
    'wrap',
    [
        lambda leaf: dict(type='RepeatDataset', times=2, dataset=leaf),
        lambda leaf: dict(
            type='ClassBalancedDataset', oversample_thr=0.1, dataset=dict(type='RepeatDataset', times=2, dataset=leaf)
        ),
        lambda leaf: dict(type='ConcatDataset', datasets=[leaf, leaf]),
    ],
)
def test_wrappers_are_looked_through(root, wrap):
    cfg = detector(root)
    cfg.train_dataloader.dataset = wrap(cfg.train_dataloader.dataset.to_dict())
    assert check_data(cfg) == []
    truncate(root / 'images/training/000002.jpg')
    refused(cfg, 'train', '000002.jpg is corrupt')
    check_data(cfg, on_corrupt='skip')
    assert check_data(cfg) == []


def test_large_sets_are_read_in_part_and_the_log_says_so(root, monkeypatch):
    said = []
    monkeypatch.setattr(image_checks, 'SCAN_LIMIT', 3)
    monkeypatch.setattr(image_checks, 'print_log', lambda message, **kwargs: said.append(message))
    truncate(root / 'images/training/000001.jpg')  # between the ones read: 0, 4, 8
    assert check_data(detector(root), ('train',)) == []
    assert said == ['data check: reading 3 of the 9 images of train, evenly spaced']
    truncate(root / 'images/training/000004.jpg')
    refused(detector(root), '000004.jpg is corrupt')


def test_unknown_choice_and_absent_split(root):
    refused(detector(root), "on_corrupt is 'ignore', expected 'fatal' or 'skip'", on_corrupt='ignore')
    assert check_data(Config(dict(default_scope='mmdet'))) == []


def test_reads_what_opencv_reads_and_pillow_does_not(tmp_path):
    path = tmp_path / 'float.tiff'
    assert cv2.imwrite(str(path), np.random.rand(8, 5, 3).astype(np.float32))
    assert read_image(str(path)) == (None, (5, 8))


def test_listing_and_spread():
    assert listing([]) == 'none' and listing([1, 2]) == '1, 2' and listing(range(10), 2) == '0, 1 and 8 more'
    assert spread(range(11), 'numbers', limit=3) == [0, 5, 10]


def test_data_root_moves_every_path_built_from_it(tmp_path):
    cfg = Config.fromfile(CONFIGS / 'shapes/faster-rcnn_r18_fpn_shapes.py')
    override_data_root(cfg, '/elsewhere')
    assert cfg.data_root == cfg.train_dataloader.dataset.data_root.rstrip('/') == '/elsewhere'
    assert cfg.test_evaluator.ann_file == '/elsewhere/annotations/instances_validation.json'
    with pytest.raises(DataError, match='defines no data_root'):
        override_data_root(Config(dict(model=None)), '/elsewhere')

import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from mmkerneldna.datasets import DataError, ShapesSpec, chance_scores, describe_shapes, generate_shapes
from mmkerneldna.datasets.shapes import HARD_SHARE, SPLITS, hard_cases
from mmkerneldna.datasets.shapes_scene import CASES

SPEC = ShapesSpec(seed=3, train_images=12, val_images=8, min_side=100, max_side=150)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return generate_shapes(tmp_path_factory.mktemp('shapes') / 'set', SPEC)


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


@pytest.mark.parametrize('split, count', [('training', 12), ('validation', 8)])
def test_coco_annotations_equal_the_masks(root, split, count):
    coco = COCO(str(root / f'annotations/instances_{split}.json'))
    assert len(coco.imgs) == count
    for image in coco.imgs.values():
        semantic = cv2.imread(str(root / 'annotations' / split / f'{image["file_name"][:-4]}.png'), cv2.IMREAD_UNCHANGED)
        assert semantic.shape == (image['height'], image['width']) and semantic.dtype == np.uint8
        redrawn = np.zeros_like(semantic)
        for ann in coco.imgToAnns[image['id']]:
            visible = coco.annToMask(ann).astype(bool)
            assert not redrawn[visible].any()  # visible parts never overlap
            redrawn[visible] = ann['category_id']
            ys, xs = np.nonzero(visible)
            assert ann['bbox'] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
            assert ann['area'] == visible.sum() and ann['iscrowd'] == 0
        np.testing.assert_array_equal(redrawn, semantic)


def test_images_fit_their_annotations(root):
    for split in SPLITS:
        for image in json.loads((root / f'annotations/instances_{split}.json').read_text())['images']:
            pixels = cv2.imread(str(root / 'images' / split / image['file_name']))
            assert pixels.shape == (image['height'], image['width'], 3)
            assert min(pixels.shape[:2]) >= 100 and max(pixels.shape[:2]) <= 150


def test_same_seed_is_byte_identical_and_another_seed_is_not(root, tmp_path):
    again = files(generate_shapes(tmp_path / 'again', SPEC))
    assert again == files(root)
    other = files(generate_shapes(tmp_path / 'other', replace(SPEC, seed=4)))
    annotation = next(path for path in again if path.name == 'instances_training.json')
    assert other[annotation] != again[annotation]


def test_scale_makes_small_objects(tmp_path):
    small = generate_shapes(tmp_path / 'small', replace(SPEC, scale=0.25))
    areas = [a['area'] for a in json.loads((small / 'annotations/instances_training.json').read_text())['annotations']]
    assert len(areas) > 20 and max(areas) < 22**2 and min(areas) > 4
    with pytest.raises(DataError, match=r'scale 0.25 \(asked for 1.0\)'):
        generate_shapes(small, SPEC)
    with pytest.raises(DataError, match=r'scale 0: it must lie in \(0, 1\]'):
        replace(SPEC, scale=0)


def test_a_set_from_before_scales_is_still_taken(root, tmp_path):
    old = tmp_path / 'old'
    shutil.copytree(root, old)
    manifest = json.loads((old / 'dataset.json').read_text())
    del manifest['spec']['scale']
    (old / 'dataset.json').write_text(json.dumps(manifest))
    assert generate_shapes(old, SPEC) == old


@pytest.mark.parametrize('count', [8, 80, 320])
def test_hard_cases_have_the_stated_share(count):
    cases = hard_cases(count)
    assert len(cases) == count
    for case in CASES[1:]:
        assert cases.count(case) == max(1, round(HARD_SHARE * count))


def test_description_counts_what_is_on_disk(root):
    summary = describe_shapes(root)
    assert summary['training']['images'] == 12 and summary['validation']['images'] == 8
    coco = json.loads((root / 'annotations/instances_training.json').read_text())
    assert summary['training']['objects'] == len(coco['annotations'])
    empty = {image['id'] for image in coco['images'] if image['case'] == 'empty'}
    assert summary['training']['empty'] == len(empty) == 1
    assert not empty & {ann['image_id'] for ann in coco['annotations']}


def test_identical_set_is_reused_untouched(root):
    stamps = {path: path.stat().st_mtime_ns for path in root.rglob('*')}
    assert generate_shapes(root, SPEC) == root
    assert stamps == {path: path.stat().st_mtime_ns for path in root.rglob('*')}


def test_another_set_is_not_overwritten(root):
    before = files(root)
    with pytest.raises(DataError, match=r'another shapes set: seed 3 \(asked for 4\), train_images 12 \(asked for 9\)'):
        generate_shapes(root, replace(SPEC, seed=4, train_images=9))
    assert files(root) == before


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / 'notes.txt').write_text('mine')
    with pytest.raises(DataError, match='holds no generated shapes set.*name another folder'):
        generate_shapes(tmp_path, SPEC)
    assert files(tmp_path) == {(tmp_path / 'notes.txt').relative_to(tmp_path): b'mine'}


@pytest.mark.parametrize('victim', ['images/training/000003.jpg', 'annotations/validation/000002.png'])
def test_damage_is_noticed(root, tmp_path, victim):
    copy = shutil.copytree(root, tmp_path / 'copy')
    (copy / victim).unlink()
    with pytest.raises(DataError, match=f'is damaged: the {victim.split("/")[1]} annotations'):
        generate_shapes(copy, SPEC)


def test_interruption_leaves_nothing(tmp_path):

    def interrupt(images, description):
        yield from list(images)[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_shapes(tmp_path / 'set', SPEC, track=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('wrong', [dict(train_images=0), dict(min_side=40), dict(min_side=200, max_side=160)])
def test_refuses_a_spec_that_cannot_be_drawn(wrong):
    with pytest.raises(DataError, match='at least one image in each split and 96 <= min_side <= max_side'):
        ShapesSpec(**wrong)


def test_chance_is_low_and_background_share_bounds_it(root):
    scores = chance_scores(root)
    masks = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in (root / 'annotations/validation').glob('*.png')]
    background = sum((mask == 0).sum() for mask in masks) / sum(mask.size for mask in masks)
    assert scores['mIoU'] >= 100 * background / 7 - 1e-6  # the guesser that says background everywhere
    assert scores['mIoU'] < 25 and scores['box AP'] < 0.05

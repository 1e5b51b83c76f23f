import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from scipy import ndimage
from shapely.geometry import Polygon

from mmkerneldna.datasets.mask_polygons import mask_to_polygons
from mmkerneldna.datasets.shapes_art import CLASSES, LOYALTY, OUTLINES
from mmkerneldna.datasets.shapes_scene import CASES, MIN_VISIBLE, OCCLUDED_RANGE, TINY_RADIUS, TRUNCATED_RANGE, draw_scene


def rasterise(polygons, height, width):
    """COCO's own rasteriser, independent of OpenCV."""
    runs = coco_mask.frPyObjects([[float(v) for v in polygon] for polygon in polygons], height, width)
    return coco_mask.decode(coco_mask.merge(runs)).astype(bool)


def scene(case, seed=0, height=170, width=200):
    return draw_scene(np.random.RandomState(seed), height, width, case)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**31 - 1), case=st.sampled_from(CASES))
def test_polygons_rasterise_to_the_visible_mask(seed, case):
    for instance in scene(case, seed).instances:
        redrawn = rasterise(mask_to_polygons(instance.mask), *instance.mask.shape)
        np.testing.assert_array_equal(redrawn, instance.mask)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**31 - 1), fill=st.floats(0.1, 0.9))
def test_polygons_of_any_mask_without_holes(seed, fill):
    blobs = np.random.RandomState(seed).uniform(size=(9, 12)) < fill
    # with 8-connected objects, a hole is a 4-connected part of the background; scipy's filling uses the same rule
    mask = ndimage.binary_fill_holes(blobs)
    if mask.any():
        np.testing.assert_array_equal(rasterise(mask_to_polygons(mask), 9, 12), mask)


@pytest.mark.parametrize('case', CASES)
def test_visible_masks_are_disjoint_whole_and_as_visible_as_promised(case):
    for seed in range(4):
        drawn = scene(case, seed)
        assert drawn.image.shape == (170, 200, 3) and drawn.image.dtype == np.uint8
        assert sum((instance.mask.astype(int) for instance in drawn.instances), np.zeros((170, 200), int)).max() <= 1
        lowest = min(MIN_VISIBLE, OCCLUDED_RANGE[0], TRUNCATED_RANGE[0])
        for instance in drawn.instances:
            assert lowest <= instance.visibility <= 1
            assert not (ndimage.binary_fill_holes(instance.mask) ^ instance.mask).any()


def test_hard_cases_are_what_they_are_called():
    for seed in range(4):
        assert scene('empty', seed).instances == []
        tiny = [i for i in scene('tiny', seed).instances if i.mask.sum() <= np.pi * TINY_RADIUS[1] ** 2 + 20]
        assert len(tiny) >= 3
        occluded = [i for i in scene('occluded', seed).instances if OCCLUDED_RANGE[0] <= i.visibility <= OCCLUDED_RANGE[1]]
        assert occluded
        truncated = scene('truncated', seed).instances[-1]
        ring = np.ones_like(truncated.mask)
        ring[1:-1, 1:-1] = False
        assert (truncated.mask & ring).any() and truncated.visibility <= TRUNCATED_RANGE[1]


def test_same_stream_same_scene():
    first, second, other = scene('plain', 5), scene('plain', 5), scene('plain', 6)
    np.testing.assert_array_equal(first.image, second.image)
    assert not np.array_equal(first.image, other.image)


def test_the_outline_tells_the_class_where_colour_may_not():
    assert LOYALTY < 1  # colour alone must not give the class away
    areas = {name: Polygon(points).area for name, points in OUTLINES.items()}
    assert areas['circle'] == pytest.approx(np.pi, rel=0.01)
    assert areas['square'] == pytest.approx(2)
    assert areas['triangle'] == pytest.approx(3 * np.sqrt(3) / 4)
    assert areas['cross'] == pytest.approx(4 * (4 * 0.34 - 2 * 0.34**2) / 2)
    assert set(CLASSES) == set(areas)


@pytest.mark.parametrize('arguments', [('sunny', 170, 200), ('plain', 90, 200)])
def test_refuses_unknown_case_and_small_image(arguments):
    case, height, width = arguments
    with pytest.raises(ValueError, match='expected a case among plain, tiny.*at least 96'):
        draw_scene(np.random.RandomState(0), height, width, case)

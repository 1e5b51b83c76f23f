"""What the check of an exported file accepts and refuses."""

import numpy as np
import pytest

from mmkerneldna.deploy.end2end.agreement import TOLERANCES, Comparison, match
from mmkerneldna.deploy.export_error import ExportError

BOXES = np.array([[0, 0, 10, 10, 0.9], [20, 20, 40, 40, 0.8], [21, 20, 41, 40, 0.7], [60, 0, 80, 10, 0.06]], np.float32)
LABELS = np.array([0, 1, 1, 2])


def compared(change, dtype='fp32', limit=100, floor=0.05):
    dets, labels = BOXES.copy(), LABELS.copy()
    change(dets, labels)
    comparison = Comparison(TOLERANCES[dtype], floor)
    comparison.detections((dets, labels), (BOXES, LABELS), limit)
    return comparison.verdict()


def test_each_box_has_one_partner_of_its_class():
    shifted = BOXES[[2, 1, 0]] + np.float32(0.01)
    assert sorted(match((shifted, LABELS[[2, 1, 0]]), (BOXES, LABELS), 0.9)) == [(0, 2), (1, 1), (2, 0)]
    assert sorted(match((shifted, np.array([1, 1, 2])), (BOXES, LABELS), 0.9)) == [(0, 2), (1, 1)]


def test_equal_predictions_agree():
    found = compared(lambda dets, labels: None)
    assert (found.boxes, found.matched, found.score, found.iou) == (8, 1, 0, 1)


@pytest.mark.parametrize(
    'change',
    [
        lambda dets, labels: dets.__setitem__((0, 4), 0.898),
        lambda dets, labels: dets.__setitem__((0, 2), 11),
        lambda dets, labels: labels.__setitem__(0, 1),
    ],
)
def test_another_score_place_or_class_is_refused(change):
    with pytest.raises(ExportError, match='does not agree with torch, no file is left'):
        compared(change)


def test_a_box_at_the_threshold_may_be_cut_by_rounding():
    def drop(dets, labels):
        dets[3], labels[3] = 0, -1

    with pytest.raises(ExportError):
        compared(drop)
    assert compared(drop, floor=0.059).matched == 1
    assert compared(drop, limit=4).matched == 1


def test_a_model_that_is_sure_of_nothing_is_compared_in_half_precision():
    weak = BOXES * np.array([1, 1, 1, 1, 0.2], np.float32)
    comparison = Comparison(TOLERANCES['fp16'], 0.01)
    comparison.detections((weak[[0, 2]], LABELS[[0, 2]]), (weak, LABELS), 100)
    assert comparison.found.boxes == 5 and comparison.found.matched == pytest.approx(4 / 5)
    with pytest.raises(ExportError):
        comparison.verdict()


def test_masks_and_maps():
    left, right = np.zeros((2, 10, 10), bool), np.zeros((2, 10, 10), bool)
    left[0, :5], right[0, :5], right[1, 0, 0] = True, True, True
    comparison = Comparison(TOLERANCES['fp32'])
    comparison.masks(left, right)
    assert comparison.found.masks == pytest.approx(50 / 51)
    with pytest.raises(ExportError):
        comparison.verdict()
    comparison = Comparison(TOLERANCES['bf16'])
    comparison.label_map(left[0], right[1])
    assert comparison.found.pixels == pytest.approx(0.51)
    with pytest.raises(ExportError, match=r'51.000% of the pixels'):
        comparison.verdict()
    with pytest.raises(ExportError, match=r'a map of \(10, 9\), torch one of \(10, 10\)'):
        comparison.label_map(left[0][:, :9], right[0])

"""tools/benchmark_deploy.py: whole detectors do equal work."""

import pytest
from mmdet.models.roi_heads import StandardRoIHead
from tiny_runs import run_tool

SMALL = ['mmkerneldna::shapes/faster-rcnn_r18_fpn_shapes.py', 'mmkerneldna::shapes/faster-rcnn_kdna-r18_fpn_shapes.py']
PARTS = ['parts', '--rounds', '1', '--device', 'cpu', '--size', '64x96']


@pytest.fixture
def boxes(monkeypatch):
    """Proposals of each prediction of a two-stage detector, one list per image."""
    seen, predict = [], StandardRoIHead.predict

    def spy(self, features, proposals, *args, **kwargs):
        seen.append([found.bboxes.tolist() for found in proposals])
        return predict(self, features, proposals, *args, **kwargs)

    monkeypatch.setattr(StandardRoIHead, 'predict', spy)
    return seen


@pytest.fixture(autouse=True)
def small_detectors(monkeypatch):
    """The shapes detectors in the place of the COCO ones."""
    import mmengine.hub

    get_config = mmengine.hub.get_config
    monkeypatch.setattr(mmengine.hub, 'get_config', lambda path: get_config(SMALL['kdna' in path]))


def test_eager_and_deployed_detectors_get_the_same_proposals(boxes, capsys):
    assert run_tool('benchmark_deploy.py', [*PARTS, '--proposals', '60']) == 0
    assert len(boxes) == 3 * 4, 'three models, three rounds to warm up and one timed'
    assert all(image == boxes[0][0] and len(image) == 60 for images in boxes for image in images)
    printed = capsys.readouterr().out
    assert 'end to end (test_step), 64x96, batch 1, 60 fixed proposals' in printed
    assert printed.count('fixed proposals') == 1 and printed.count('kdna deployed') == 3


def test_the_default_is_too_many_for_a_tiny_image(boxes, capsys):
    assert run_tool('benchmark_deploy.py', PARTS) == 2
    assert 'error: 1000 proposals per image: an image of 64x96 has' in capsys.readouterr().err and not boxes

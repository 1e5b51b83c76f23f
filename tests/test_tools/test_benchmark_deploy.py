"""tools/benchmark_deploy.py: whole detectors do equal work, and what its tables say."""

import re
from functools import partial

import mmdet.models.backbones
import pytest
from mmdet.models.roi_heads import StandardRoIHead
from tiny_runs import run_tool

import mmkerneldna.backbones
import mmkerneldna.deploy.deployment

SMALL = ['mmkerneldna::shapes/faster-rcnn_r18_fpn_shapes.py', 'mmkerneldna::shapes/faster-rcnn_kdna-r18_fpn_shapes.py']
TINY = ['--rounds', '1', '--device', 'cpu', '--size', '64']
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


def narrow(monkeypatch, home, name):
    """Eight channels for a backbone of a tool."""
    monkeypatch.setattr(home, name, partial(getattr(home, name), base_channels=8))


def test_kernels_that_stay_shared(monkeypatch, capsys):
    narrow(monkeypatch, mmdet.models.backbones, 'ResNet')
    assert run_tool('benchmark_deploy.py', ['shared', *TINY]) == 0
    printed = ' '.join(capsys.readouterr().out.split())
    shared = re.search(r'half, shared: file .*? \((.*?) of static\), weights in memory .*? MB \((.*?)\)', printed)
    assert shared and all(0.4 < float(ratio) < 0.65 for ratio in shared.groups())


def test_convolutions_directly_and_filtered(capsys):
    layers = [(5, 6, 1, 9), (6, 5, 2, 8)]
    asked = [arg for layer in layers for arg in ('--layer', *map(str, layer))]
    assert run_tool('benchmark_deploy.py', ['winograd', *TINY, *asked]) == 0
    printed = capsys.readouterr().out
    for c_in, c_out, batch, side in layers:
        name = f'{c_in} -> {c_out}, {batch} x {side}x{side}'
        assert re.search(f'│ {name}, direct +│', printed) and re.search(f'│ {name}, filtered +│.*x {name}, direct', printed)


def test_a_row_per_backend(monkeypatch, capsys):
    narrow(monkeypatch, mmkerneldna.backbones, 'KDNAResNet')
    # backends have tests of their own, and compiling takes seconds
    run_in_backend = lambda model, twin, backend, *args: model.deploy_report.backends.update(part='openvino')  # noqa: E731
    monkeypatch.setattr(mmkerneldna.deploy.deployment, 'run_in_backend', run_in_backend)
    assert run_tool('benchmark_deploy.py', ['backbone', *TINY, '--depth', '18', '--backends', 'torch', 'auto']) == 0
    printed = capsys.readouterr().out
    for name in ('static', 'kdna'):
        assert f"{name}: auto took {{'part': 'openvino'}}" in printed
        for row in ('eager', 'deployed', 'deployed auto'):
            assert re.search(f'│ {name} {row} +│', printed)
    assert len(re.findall(r'│ kdna deployed auto .*x kdna eager,.*x static deployed auto,', printed)) == 1

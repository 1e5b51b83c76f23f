"""tools/infer.py: pictures, maps and JSON against upstream's own functions; bad input."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.apis import inference_detector, init_detector
from mmengine.registry import MODELS, DefaultScope
from tiny_runs import DETECTOR, ROOT, SEGMENTER, run_tool

from mmkerneldna import launch
from mmkerneldna.launch.panels import side_by_side

CLASSES = {DETECTOR: tuple('abcdef'), SEGMENTER: tuple('abcdefg')}


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """Checkpoints of both tiny models as mmengine writes them, with random weights."""
    paths = {}
    for config, classes in CLASSES.items():
        cfg = launch.load_config(str(ROOT / config))
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = MODELS.build(cfg.model)
        palette = [[40 * i, 255 - 30 * i, 90] for i in range(len(classes))]
        paths[config] = tmp_path_factory.mktemp('weights') / 'epoch_1.pth'
        torch.save(
            dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=classes, palette=palette))), paths[config]
        )
    return paths


@pytest.fixture
def pictures(tmp_path):
    folder, rng = tmp_path / 'photos', np.random.default_rng(0)
    folder.mkdir()
    for name, size in (('wide.png', (64, 96, 3)), ('tall.png', (96, 64, 3))):
        cv2.imwrite(str(folder / name), rng.integers(0, 255, size, dtype=np.uint8))
    (folder / 'notes.txt').write_text('no picture')
    return folder


def infer(weights, *inputs, out, models=(DETECTOR,), flags=()):
    pairs = [text for config in models for text in (str(ROOT / config), str(weights[config]))]
    return run_tool('infer.py', [*pairs, *map(str, inputs), '--out', str(out), '--device', 'cpu', *flags])


def facts(out, name):
    return json.loads((out / 'json' / f'{name}.json').read_text())


def test_a_detector_and_a_segmenter_side_by_side(weights, pictures, tmp_path, capsys):
    out = tmp_path / 'out'
    assert infer(weights, pictures, out=out, models=(DETECTOR, SEGMENTER), flags=['--score-thr', '0.05']) == 0
    assert sorted(path.name for path in (out / 'pictures').iterdir()) == ['tall.png', 'wide.png']
    height, width = cv2.imread(str(out / 'pictures/wide.png')).shape[:2]
    assert width >= 2 * 96 and height > 64  # two panels, captions below
    detector, segmenter = facts(out, 'wide')['models']
    assert detector['frames'][0]['ms'] > 0 and detector['name'] == Path(DETECTOR).stem
    reference = inference_detector(
        init_detector(str(ROOT / DETECTOR), str(weights[DETECTOR]), device='cpu'), str(pictures / 'wide.png')
    ).pred_instances
    kept = reference[reference.scores >= 0.05]
    objects = detector['frames'][0]['objects']
    assert len(objects) == len(kept) > 0
    assert [item['box'] for item in objects] == [pytest.approx(box.tolist(), abs=1e-2) for box in kept.bboxes]
    assert {item['class'] for item in objects} <= set(CLASSES[DETECTOR])
    label_map = cv2.imread(str(out / 'maps' / Path(SEGMENTER).stem / 'wide.png'), cv2.IMREAD_UNCHANGED)
    shares = segmenter['frames'][0]['classes']
    assert label_map.shape == (64, 96) and sum(shares.values()) == pytest.approx(1)
    assert shares == pytest.approx({CLASSES[SEGMENTER][i]: (label_map == i).mean() for i in np.unique(label_map)})
    assert 'wide.png' in capsys.readouterr().out


def test_a_video_becomes_a_video(weights, tmp_path):
    clip, out = tmp_path / 'clip.avi', tmp_path / 'out'
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter_fourcc(*'MJPG'), 5, (96, 64))
    for shade in (0, 120, 240):
        writer.write(np.full((64, 96, 3), shade, np.uint8))
    writer.release()
    assert infer(weights, clip, out=out, models=(SEGMENTER,)) == 0
    capture = cv2.VideoCapture(str(out / 'pictures/clip.mp4'))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 3 and capture.get(cv2.CAP_PROP_FPS) == pytest.approx(5)
    assert len(facts(out, 'clip')['models'][0]['frames']) == 3


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda tmp, w: ['photo.png'], 'photo.png is no config'),
        (lambda tmp, w: [str(ROOT / DETECTOR)], 'must be followed by its checkpoint'),
        (lambda tmp, w: [str(ROOT / DETECTOR), w[DETECTOR]], 'no picture, video or folder is named'),
        (lambda tmp, w: [str(ROOT / DETECTOR), w[DETECTOR], tmp / 'none.png'], 'none.png does not exist'),
        (lambda tmp, w: [str(ROOT / DETECTOR), w[DETECTOR], tmp / 'empty'], 'holds no picture'),
        (lambda tmp, w: [str(ROOT / DETECTOR), w[DETECTOR], tmp / 'text.png'], 'text.png: not an image'),
        (lambda tmp, w: [str(ROOT / DETECTOR), w[DETECTOR], tmp / 'text.mp4'], 'no frame can be read'),
        (lambda tmp, w: [str(ROOT / DETECTOR), w[DETECTOR], tmp / 'text.txt'], 'neither a picture nor a video'),
        (lambda tmp, w: [str(ROOT / DETECTOR), tmp / 'none.pth', tmp / 'fine.png'], 'none.pth does not exist'),
        (lambda tmp, w: [str(ROOT / DETECTOR), w[SEGMENTER], tmp / 'fine.png'], 'does not fit FasterRCNN'),
        (lambda tmp, w: ['none.py', w[SEGMENTER], tmp / 'fine.png'], 'config none.py does not exist'),
        (
            lambda tmp, w: [str(ROOT / DETECTOR), w[DETECTOR], str(ROOT / DETECTOR), w[DETECTOR], tmp / 'fine.png'],
            'two models have one name',
        ),
    ],
)
def test_bad_input_is_one_line(make, message, weights, tmp_path, capfd):
    (tmp_path / 'empty').mkdir()
    for name in ('text.png', 'text.mp4', 'text.txt'):
        (tmp_path / name).write_text('text')
    cv2.imwrite(str(tmp_path / 'fine.png'), np.zeros((64, 64, 3), np.uint8))
    assert run_tool('infer.py', [*map(str, make(tmp_path, weights)), '--out', str(tmp_path / 'out'), '--device', 'cpu']) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith('error:')]
    assert len(errors) == 1 and message in errors[0]
    assert not (tmp_path / 'out').exists()


def test_panels_have_one_height_and_captions_fit():
    wide, tall = np.zeros((40, 80, 3), np.uint8), np.full((120, 60, 3), 200, np.uint8)
    panel = side_by_side([wide, tall], [['a', 'x' * 200], ['b', '1.0 ms']])
    assert panel.shape[0] > 40 and panel.shape[0] % 2 == 0 and panel.shape[1] == 80 + 6 + 20
    assert (panel[:40, :80] == 0).all() and (panel[:40, 86:106] == 200).all()
    assert (panel[40:, 80:86] == 255).all()  # no caption runs into the gap
    assert (panel[40:, :80] < 128).any()

"""tools/show_trees.py: trees as text, pictures of their leaves, and bad input."""

import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from tiny_runs import ROOT, run_tool

from mmkerneldna import launch

CONFIG = """
_base_ = {base!r}
model = dict(
    backbone=dict(_delete_=True, type='DynamicConvs', conv=dict(type='MoEConv2d', num_experts=2, gate=dict(type='TreeRouter')),
                  include=['layer4.1.conv2'], module=_base_.model.backbone),
    decode_head=dict(conv=dict(gate=dict(type='TreeRouter')), module=dict(channels=16)),
    data_preprocessor=dict(size=(96, 96)),
)
"""


def save_random(config, path):
    """A checkpoint with random weights, as mmengine writes it."""
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(launch.load_config(str(config)).model)
    meta = dict(dataset_meta=dict(classes=tuple('abcdefg'), palette=[[30 * i, 9, 99] for i in range(7)]))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('trees')
    config = folder / 'trees.py'
    config.write_text(CONFIG.format(base=str(ROOT / 'configs/shapes/upernet_position-moe-r18_shapes.py')))
    save_random(config, folder / 'epoch_1.pth')
    for i in range(2):
        image = np.random.default_rng(i).integers(0, 256, (80, 100, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f'{i}.png'), image)
    argv = [
        str(config),
        str(folder / 'epoch_1.pth'),
        str(folder / '0.png'),
        str(folder / '1.png'),
        '--out',
        str(folder / 'out'),
    ]
    return folder, argv, run_tool('show_trees.py', argv)


def test_prints_paints_and_lists(run):
    folder, _, code = run
    assert code == 0
    text = (folder / 'out/trees.txt').read_text()
    assert 'backbone.layer4.1.conv2.gate\n2 inputs: 2 leaves, 1 decisions each' in text
    assert text.count('4 leaves, 2 decisions each') == 3  # UPerNet's laterals
    rows = json.loads((folder / 'out/leaves.json').read_text())['images']
    assert [row['image'] for row in rows] == ['0', '1']
    for row in rows:
        assert len(row['leaves']) == 4 and all(sum(shares) == pytest.approx(1) for shares in row['leaves'].values())
        assert sorted(row['leaves']['backbone.layer4.1.conv2.gate']) == [0, 1]
        picture = cv2.imread(str(folder / f'out/leaves/{row["image"]}.png'))
        assert picture is not None and picture.shape[1] > 3 * 100


def test_refuses_a_model_without_trees(run, tmp_path, capsys):
    _, argv, _ = run
    plain = ROOT / 'configs/shapes/upernet_position-moe-r18_shapes.py'
    save_random(plain, tmp_path / 'plain.pth')
    assert run_tool('show_trees.py', [str(plain), str(tmp_path / 'plain.pth'), *argv[2:]]) == 2
    assert 'has no tree' in capsys.readouterr().err

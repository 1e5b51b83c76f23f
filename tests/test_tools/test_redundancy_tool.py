"""tools/redundancy.py on a small segmenter: table, files, trials."""

import json

import torch
from mmengine.registry import MODELS, DefaultScope
from PIL import Image
from test_derive_tool import NARROW, STATIC
from tiny_runs import SEGMENTER, narrow_config, run_tool

from tests.helpers import randomise


def test_tables_pictures_and_trials(tmp_path, capsys):
    cfg = narrow_config(STATIC, like=SEGMENTER)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = randomise(MODELS.build(cfg.model))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'static.pth')
    (tmp_path / 'images').mkdir()
    for i in range(3):
        Image.effect_noise((80 + i, 70), 60).convert('RGB').save(tmp_path / 'images' / f'{i}.png')
    argv = [
        STATIC,
        str(tmp_path / 'static.pth'),
        '--out',
        str(tmp_path / 'out'),
        '--images',
        str(tmp_path / 'images'),
        '--batch',
        '2',
        '--size',
        '64',
        '64',
        '--batches',
        '1',
        '--validate',
        '3',
        '--device',
        'cpu',
        '--cfg-options',
        *NARROW,
    ]
    assert run_tool('redundancy.py', argv) == 0
    printed = capsys.readouterr().out
    assert "Spearman's rank correlation of 3 measured damages" in printed and 'backbone.layer4.1.conv1' in printed
    held = json.loads((tmp_path / 'out' / 'redundancy.json').read_text())
    children = {row['child'] for row in held['pairs']}
    assert {'backbone.layer1.0.conv1', 'backbone.layer4.1.conv2', 'decode_head.fpn_convs.0.conv'} <= children
    assert len(held['trials']) == 3 and all(trial['measured'] > 0 for trial in held['trials'])
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {
        'redundancy.json',
        'redundancy.csv',
        'heatmaps.png',
        'dendrogram.png',
    }

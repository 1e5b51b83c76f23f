"""tools/test.py: scores, dumps, and refusals."""

import json
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from tiny_runs import DETECTOR, ROOT, SEGMENTER, SMALL, narrow_config, run_tool


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    """Initial weights of both models, as checkpoints."""
    folder, paths = tmp_path_factory.mktemp('weights'), {}
    for config in (DETECTOR, SEGMENTER):
        cfg = narrow_config(config)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = MODELS.build(cfg.model)
        paths[config] = folder / f'{Path(config).stem}.pth'
        torch.save(dict(meta={}, state_dict=model.state_dict()), paths[config])
    return paths


def test_argv(config, checkpoint, data, work_dir, *flags):
    return [
        str(ROOT / config),
        str(checkpoint),
        '--work-dir',
        str(work_dir),
        *map(str, flags),
        '--cfg-options',
        f'data_root={data}',
        *SMALL[config],
    ]


test_argv.__test__ = False


def metrics(work_dir):
    """Of the run in ``work_dir``: the JSON named after its folder, not ``cost.json`` beside it."""
    (path,) = (path for path in Path(work_dir).glob('*/*.json') if path.stem == path.parent.name)
    return json.loads(path.read_text())


def test_detector(checkpoints, shapes, tmp_path):
    out, painted = tmp_path / 'out.pkl', tmp_path / 'painted'
    assert (
        run_tool('test.py', test_argv(DETECTOR, checkpoints[DETECTOR], shapes, tmp_path, '--out', out, '--show-dir', painted))
        == 0
    )
    assert 0 <= metrics(tmp_path)['coco/bbox_mAP'] <= 1
    assert len(pickle.loads(out.read_bytes())) == 2
    assert len(list(tmp_path.rglob('painted/*.png')) + list(tmp_path.rglob('painted/*.jpg'))) == 2


def test_segmenter(checkpoints, shapes, tmp_path):
    out = tmp_path / 'maps'
    assert run_tool('test.py', test_argv(SEGMENTER, checkpoints[SEGMENTER], shapes, tmp_path, '--out', out)) == 0
    assert 0 <= metrics(tmp_path)['mIoU'] <= 100
    assert len(list(out.glob('*.png'))) == 2


def test_flips_at_test_time_use_the_weights(checkpoints, shapes, tmp_path, capfd):
    assert run_tool('test.py', test_argv(DETECTOR, checkpoints[DETECTOR], shapes, tmp_path, '--tta')) == 0
    assert 'do not match' not in capfd.readouterr().out


@pytest.mark.parametrize('config, flags', [(DETECTOR, []), (DETECTOR, ['--tta']), (SEGMENTER, [])])
def test_deployed_model_scores_the_same(config, flags, checkpoints, shapes, tmp_path):
    scores = {}
    for name in ('eager', 'deployed'):
        deploy = ['--deploy'] if name == 'deployed' else []
        argv = test_argv(config, checkpoints[config], shapes, tmp_path / name, *flags, *deploy)
        assert run_tool('test.py', argv) == 0
        said = next((tmp_path / name).glob('*/*.log')).read_text()
        assert ('convs baked' in said) == bool(deploy) and 'could not be measured' not in said
        scores[name] = metrics(tmp_path / name)
    for key in {'coco/bbox_mAP', 'coco/bbox_mAP_50', 'mIoU', 'aAcc'} & set(scores['eager']):
        assert scores['deployed'][key] == pytest.approx(scores['eager'][key], abs=0.02)
    for key in ('cost/gmacs', 'cost/unique_params_m'):
        assert scores['deployed'][key] == scores['eager'][key] > 0
    held, estimated = (scores[name]['cost/deployed_params_m'] for name in ('deployed', 'eager'))
    assert 0.98 * estimated < held < estimated  # folded norms: a bias in the place of factor and summand


@pytest.mark.parametrize('flag', ['--compile', '--cuda-graph'])
def test_flags_of_a_deployed_model_alone_are_a_mistake(flag, shapes, tmp_path, capfd):
    assert run_tool('test.py', test_argv(DETECTOR, 'any.pth', shapes, tmp_path, flag)) == 2
    assert f'error: {flag} is an option of the deployed model: add --deploy' in capfd.readouterr().err


@pytest.mark.parametrize(
    'spoil, pattern',
    [
        ('other model', r'does not fit EncoderDecoder: of the \d+ entries of the model \d+ are missing'),
        ('cut short', r'cut short, damaged'),
        ('gone', r'does not exist'),
    ],
)
def test_refused_checkpoint(spoil, pattern, checkpoints, shapes, tmp_path, capfd):
    path = tmp_path / 'spoilt.pth'
    if spoil != 'gone':
        path.write_bytes(checkpoints[DETECTOR if spoil == 'other model' else SEGMENTER].read_bytes())
    if spoil == 'cut short':
        os.truncate(path, path.stat().st_size // 2)
    assert run_tool('test.py', test_argv(SEGMENTER, path, shapes, tmp_path)) == 2
    assert re.search('error: .*' + pattern, capfd.readouterr().err)


def test_out_of_a_detector_is_a_pickle(checkpoints, shapes, tmp_path, capfd):
    assert run_tool('test.py', test_argv(DETECTOR, checkpoints[DETECTOR], shapes, tmp_path, '--out', 'a.json')) == 2
    assert 'must be named *.pkl' in capfd.readouterr().err

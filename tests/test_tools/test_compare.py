"""tools/compare.py: nothing is run twice, a killed run is resumed, failures don't stop the others."""
import argparse
import fcntl
import json
import runpy

import pytest
import torch
from tiny_runs import ROOT, SEGMENTER, SMALL, run_tool

from mmkerneldna import launch
from mmkerneldna.errors import UsageError
from mmkerneldna.measure.benchmark import build_from_config
from mmkerneldna.runs.comparison import Run, Variant, execute, parse_variant, variant_rows

# Stands in for train.py and test.py: notes its call, leaves what mmengine leaves, or dies.
FAKE = '''
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from run_folders import DET_CFG, cost, train_line, write_stamp
tool, work_dir = Path(__file__).stem, Path(sys.argv[sys.argv.index('--work-dir') + 1])
calls = Path(__file__).parent / 'calls'
calls.open('a').write(' '.join([tool, *sys.argv[1:]]) + '\\n')
print('mmengine - INFO - working')
if (Path(__file__).parent / f'{{tool}}_dies').exists():
    sys.exit(3)
cfg = DET_CFG.format(seed=0)
if tool == 'train':
    write_stamp(work_dir, '20260101_000000', cfg, [train_line(30, 3), {{'coco/bbox_mAP': 0.5, 'step': 3}}])
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_3.pth'))
else:
    write_stamp(work_dir, '20260102_000000', cfg, test={{'coco/bbox_mAP': 0.25, **cost(9.0)}})
'''


@pytest.fixture
def tools(tmp_path):
    folder = tmp_path / 'tools'
    folder.mkdir()
    for name in ('train', 'test'):
        (folder / f'{name}.py').write_text(FAKE.format(tests=str(ROOT / 'tests')))
    return folder


def make_run(tmp_path, seed=0, digest='abc', options=('a.b=1', )):
    return Run(Variant('kdna', 'a.py'), seed, tmp_path / 'kdna' / f'seed_{seed}',
               dict(config=digest, seed=seed, train_flags=[]), options)


def calls(tools):
    return (tools / 'calls').read_text().splitlines() if (tools / 'calls').exists() else []


def test_a_run_is_trained_and_tested_once(tmp_path, tools):
    run, lines = make_run(tmp_path, seed=5), []
    run.claim()
    row = execute(run, ['--amp'], lines.append, tools)
    assert (row['score'], row['score_from'], row['variant'], row['seed']) == (25.0, 'test', 'kdna', 5)
    work = str(run.work_dir)
    assert calls(tools) == [f'train a.py --work-dir {work} --resume --seed 5 --amp --cfg-options a.b=1',
                            f'test a.py {work}/epoch_3.pth --work-dir {work} --cfg-options a.b=1']
    assert lines == ['mmengine - INFO - working'] * 2 and 'working' in (run.work_dir / 'train.log').read_text()
    assert execute(make_run(tmp_path, seed=5), ['--amp'], lines.append, tools) == row
    assert len(calls(tools)) == 2


@pytest.mark.parametrize('dies, again', [('train', ['train', 'test']), ('test', ['test'])])
def test_a_run_that_died_goes_on_where_it_was(tmp_path, tools, dies, again):
    run = make_run(tmp_path)
    run.claim()
    (tools / f'{dies}_dies').touch()
    failed = execute(run, [], print, tools)
    assert failed['score'] is None and f'{dies}.log' in failed['note'] and not run.finished
    (tools / f'{dies}_dies').unlink()
    before = len(calls(tools))
    assert execute(run, [], print, tools)['score'] == 25.0
    assert [line.split()[0] for line in calls(tools)[before:]] == again


def test_a_folder_of_another_recipe_is_refused(tmp_path):
    make_run(tmp_path).claim()
    make_run(tmp_path).claim()
    with pytest.raises(UsageError, match='run of another config'):
        make_run(tmp_path, digest='changed').claim()


def test_a_folder_in_use_is_refused(tmp_path, tools):
    run = make_run(tmp_path)
    run.claim()
    with open(run.work_dir / 'lock', 'w') as orphan:
        fcntl.flock(orphan, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match='still runs in'):
            execute(run, [], print, tools)
    assert calls(tools) == []
    assert execute(run, [], print, tools)['score'] == 25.0


def test_interrupted_comparison_stops_its_tool(tmp_path, tools):
    run = make_run(tmp_path)
    run.claim()
    train = tools / 'train.py'
    train.write_text('import time\nprint("begun", flush=True)\ntime.sleep(600)\n')

    def interrupt(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(run, [], interrupt, tools)
    with open(run.work_dir / 'lock') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the tool, which inherits the lock, is gone
    assert not run.trained


@pytest.mark.parametrize('text, expected', [
    ('x/a.py', Variant('a', 'x/a.py')),
    ('kdna=x/a.py', Variant('kdna', 'x/a.py')),
    ('mmdet::x/a.py', Variant('a', 'mmdet::x/a.py')),
    ('k=mmdet::x/a.py', Variant('k', 'mmdet::x/a.py')),
    ('se:backbone.type=SENet', Variant('se', 'base.py', ('model.backbone.type=SENet', ))),
    ('od:backbone.conv_cfg.type=ODConv2d decode_head.channels=8 iters=5',
     Variant('od', 'base.py', ('model.backbone.conv_cfg.type=ODConv2d', 'model.decode_head.channels=8', 'iters=5'))),
    ("w:a.b='[1, 2]'", Variant('w', 'base.py', ('a.b=[1, 2]', ))),
])
def test_variants(text, expected):
    assert parse_variant(text, 'base.py') == expected


@pytest.mark.parametrize('text', ['kdna', 'kdna:', 'kdna: ', 'kdna:backbone.type', 'kdna=backbone.type=X', ':a=1'])
def test_bad_variants(text):
    with pytest.raises(UsageError, match='neither'):
        parse_variant(text, 'base.py')


def test_gain_is_over_the_first_variant():
    rows = [dict(name=f'{variant}, seed {seed}', variant=variant, seed=seed, task='detection', score=score)
            for variant, scores in (('b', (30.0, 32.0)), ('a', (20.0, 24.0))) for seed, score in enumerate(scores)]
    rows.append(dict(name='c, seed 0', variant='c', seed=0, score=None, note='failed, see train.log'))
    a, b, c = variant_rows(rows, [Variant('a', ''), Variant('b', ''), Variant('c', '')])
    assert (a['score'], a['score_gain'], b['score_gain'], b['runs']) == (22.0, 0.0, 9.0, 2)
    assert (c['score'], c['score_gain'], c['task']) == (None, None, 'detection')
    assert c['note'] == 'c, seed 0: failed, see train.log'


def test_cost_of_what_never_trained_is_missing_and_no_other_becomes_the_base(tmp_path):
    compare = runpy.run_path(str(ROOT / 'tools' / 'compare.py'))
    cfg = launch.load_config(str(ROOT / SEGMENTER))
    args = argparse.Namespace(size=['64'], batch=1, device='cpu', repeats=1, work_dir=tmp_path)
    finished = Run(Variant('kdna', ''), 0, tmp_path / 'kdna', {}, ())
    finished.work_dir.mkdir()
    torch.save(dict(state_dict=build_from_config(cfg).state_dict()), finished.work_dir / 'iter_1.pth')
    for name, content in (('result', {}), ('trained', dict(checkpoint='iter_1.pth'))):
        (finished.work_dir / f'{name}.json').write_text(json.dumps(content))
    variants = [Variant('static', ''), finished.variant]
    costs = compare['measure'](variants, dict(static=cfg, kdna=cfg), [finished], args)
    assert 'no run' in costs['static']['error'] and costs['static']['latency_ms'] is None
    assert costs['kdna']['latency_ms'] > 0 and costs['kdna']['latency_ratio'] is None


def test_comparison_end_to_end(shapes, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    static = 'configs/shapes/upernet_r18_shapes.py'
    argv = [f'static={ROOT / static}', '--work-dir', str(tmp_path), '--size', '64', '--repeats', '2', '--device', 'cpu',
            '--cfg-options', f'data_root={shapes}', *SMALL[SEGMENTER]]
    broken = ['--variant', 'broken:backbone.type=NoSuchNet']
    assert run_tool('compare.py', [*broken, *argv]) == 1, 'a failed variant must show in the exit status'
    rows = {row['name']: row for row in json.loads((tmp_path / 'report.json').read_text())['rows']}
    static, broken = rows['static'], rows['broken']
    assert static['metric'] == 'miou' and static['score_from'] == 'test' and 0 <= static['score'] <= 100
    assert static['latency_ratio'] == 1 and static['height'] == 64 and static['score_gain'] == 0
    assert broken['score'] is None and 'train.log' in broken['note'] and broken['latency_ms'] is None
    result = tmp_path / 'static' / 'seed_0' / 'result.json'
    written = result.stat().st_mtime_ns
    assert run_tool('compare.py', argv) == 0
    assert result.stat().st_mtime_ns == written and 'finished before' in capsys.readouterr().out
    assert (tmp_path / 'pareto.png').is_file() and (tmp_path / 'report.html').is_file()

"""tools/compare.py: nothing is run twice, a killed run is resumed, failures don't stop the others."""

import fcntl
import json

import pytest
import torch
from rich.console import Console
from run_folders import detection_run
from tiny_runs import ROOT, SEGMENTER, SMALL, run_tool

from mmkerneldna import launch
from mmkerneldna.errors import UsageError
from mmkerneldna.measure.benchmark import build_from_config
from mmkerneldna.measure.workload import Workload
from mmkerneldna.runs.comparison import Run, Variant, execute, parse_variant, variant_rows
from mmkerneldna.runs.progress import Step, read_event
from mmkerneldna.runs.side_by_side import interleaved_cost, measure
from mmkerneldna.runs.study import Study

# Stands in for train.py and test.py: notes its call, leaves what mmengine leaves, or dies.
FAKE = """
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
"""


@pytest.fixture
def tools(tmp_path):
    folder = tmp_path / 'tools'
    folder.mkdir()
    for name in ('train', 'test'):
        (folder / f'{name}.py').write_text(FAKE.format(tests=str(ROOT / 'tests')))
    return folder


def make_run(tmp_path, seed=0, digest='abc', options=('a.b=1',)):
    return Run(
        Variant('kdna', 'a.py'),
        seed,
        tmp_path / 'kdna' / f'seed_{seed}',
        dict(config=digest, seed=seed, train_flags=[]),
        options,
    )


def calls(tools):
    return (tools / 'calls').read_text().splitlines() if (tools / 'calls').exists() else []


def test_a_run_is_trained_and_tested_once(tmp_path, tools):
    run, lines = make_run(tmp_path, seed=5), []
    run.claim()
    row = execute(run, ['--amp'], lines.append, tools)
    assert (row['score'], row['score_from'], row['variant'], row['seed']) == (25.0, 'test', 'kdna', 5)
    work = str(run.work_dir)
    assert calls(tools) == [
        f'train a.py --work-dir {work} --resume --seed 5 --amp --cfg-options a.b=1',
        f'test a.py {work}/epoch_3.pth --work-dir {work} --cfg-options a.b=1',
    ]
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


@pytest.mark.parametrize(
    'text, expected',
    [
        ('x/a.py', Variant('a', 'x/a.py')),
        ('kdna=x/a.py', Variant('kdna', 'x/a.py')),
        ('mmdet::x/a.py', Variant('a', 'mmdet::x/a.py')),
        ('k=mmdet::x/a.py', Variant('k', 'mmdet::x/a.py')),
        ('se:backbone.type=SENet', Variant('se', 'base.py', ('model.backbone.type=SENet',))),
        (
            'od:backbone.conv_cfg.type=ODConv2d decode_head.channels=8 iters=5',
            Variant('od', 'base.py', ('model.backbone.conv_cfg.type=ODConv2d', 'model.decode_head.channels=8', 'iters=5')),
        ),
        ("w:a.b='[1, 2]'", Variant('w', 'base.py', ('a.b=[1, 2]',))),
    ],
)
def test_variants(text, expected):
    assert parse_variant(text, 'base.py') == expected


@pytest.mark.parametrize('text', ['kdna:', 'kdna: ', 'kdna:backbone.type', 'kdna=backbone.type=X', ':a=1'])
def test_bad_variants(text):
    with pytest.raises(UsageError, match='neither'):
        parse_variant(text, 'base.py')


def test_gain_is_over_the_first_variant():
    rows = [
        dict(name=f'{variant}, seed {seed}', variant=variant, seed=seed, task='detection', score=score)
        for variant, scores in (('b', (30.0, 32.0)), ('a', (20.0, 24.0)))
        for seed, score in enumerate(scores)
    ]
    rows.append(dict(name='c, seed 0', variant='c', seed=0, score=None, note='failed, see train.log'))
    a, b, c = variant_rows(rows, [Variant('a', ''), Variant('b', ''), Variant('c', '')])
    assert (a['score'], a['score_gain'], b['score_gain'], b['runs']) == (22.0, 0.0, 9.0, 2)
    assert (c['score'], c['score_gain'], c['task']) == (None, None, 'detection')
    assert c['note'] == 'c, seed 0: failed, see train.log'


@pytest.fixture
def finished(tmp_path):
    """A segmenter's run that was trained and tested, and its config."""
    cfg = launch.load_config(str(ROOT / SEGMENTER))
    run = Run(Variant('kdna', ''), 0, tmp_path / 'kdna' / 'seed_0', dict(seed=0), ())
    run.claim()
    torch.save(dict(state_dict=build_from_config(cfg).state_dict()), run.work_dir / 'iter_1.pth')
    for name, content in (('result', {}), ('trained', dict(checkpoint='iter_1.pth'))):
        (run.work_dir / f'{name}.json').write_text(json.dumps(content))
    return run, cfg


def test_cost_of_what_never_trained_is_missing_and_no_other_becomes_the_base(finished, tmp_path):
    run, cfg = finished
    costs = measure(dict(static=cfg, kdna=cfg), [run], Workload(1, (64, 64), 'cpu'), 1, tmp_path)
    assert 'no run' in costs['static']['error'] and costs['static']['latency_ms'] is None
    assert costs['kdna']['latency_ms'] > 0 and costs['kdna']['latency_ratio'] is None
    assert interleaved_cost(run.work_dir)['latency_ms'] == costs['kdna']['latency_ms']
    assert interleaved_cost(tmp_path / 'static' / 'seed_0') is None


def test_a_report_takes_the_cost_measured_in_turns(tmp_path):
    """Run a of a comparison has one; run b stands alone and keeps its own."""
    for name in ('both/a/seed_0', 'b'):
        detection_run(tmp_path / name, test=0.25, latency=1869.0)
    (tmp_path / 'both/a/seed_0/recipe.json').write_text('{}')
    row = dict(name='a', latency_ms=49.0, latency_ratio=1.0, gmacs=2.5, batch=1, height=64, width=96, device='cpu')
    (tmp_path / 'both/cost.json').write_text(json.dumps(dict(environment={}, rows=[row])))
    assert run_tool('report.py', [str(tmp_path), '--out-dir', str(tmp_path / 'out')]) == 0
    report = json.loads((tmp_path / 'out/report.json').read_text())
    a, b = sorted(report['rows'], key=lambda row: row['latency_ms'])
    assert (a['latency_ms'], a['gmacs'], a['peak_memory_mb'], a['cost_from']) == (49.0, 2.5, None, 'in turns')
    assert (b['latency_ms'], b['gmacs'], b['cost_from']) == (1870.0, 2.0, 'own run')
    assert any('in two ways' in fact for fact in report['facts'])


def test_lengths_reach_training_and_recipe(tmp_path, tools):
    def study(**lengths):
        return Study([Variant('kdna', str(ROOT / SEGMENTER))], tmp_path / 'runs', tools, lengths=lengths)

    (run,), configs = study(max_iters=10, max_epochs=None).plan()
    assert configs['kdna'].train_cfg.max_iters == 10 and configs['kdna'].param_scheduler[1].end == 10
    study(max_iters=10).run(run, Console())
    train, test = calls(tools)
    assert '--max-iters 10' in train and '--max-epochs' not in train and '--max-iters' not in test
    with pytest.raises(UsageError, match='run of another config'):
        study(max_iters=20).plan()


def test_steps_are_shown_and_kept_out_of_the_log(tmp_path, tools):
    run = make_run(tmp_path)
    run.claim()
    fake = (tools / 'train.py').read_text()
    (tools / 'train.py').write_text(
        fake + "import os\nassert os.environ['MMKERNELDNA_PROGRESS_EVENTS']\n"
        """print('progress: {"phase": "train", "done": 1, "total": 2}', flush=True)\n"""
    )
    lines = []
    execute(run, [], lines.append, tools)
    assert Step('train', 1, 2) in [read_event(line) for line in lines]
    log = (run.work_dir / 'train.log').read_text()
    assert 'working' in log and 'progress: ' not in log


def test_two_variants_of_one_name_are_refused(tmp_path, tools):
    with pytest.raises(UsageError, match='two variants have one name'):
        Study([Variant('a', 'x.py'), Variant('a', 'y.py')], tmp_path, tools)


def test_comparison_end_to_end(shapes, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    static = 'configs/shapes/upernet_r18_shapes.py'
    argv = [
        f'static={ROOT / static}',
        '--work-dir',
        str(tmp_path),
        '--size',
        '64',
        '--repeats',
        '2',
        '--device',
        'cpu',
        '--cfg-options',
        f'data_root={shapes}',
        *SMALL[SEGMENTER],
    ]
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

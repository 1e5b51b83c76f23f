"""The demo's bookkeeping: what it runs, what it skips, what makes it start anew. Training and test are replaced."""

import argparse
from dataclasses import replace

import demo
import pytest
from test_compare import calls, tools  # noqa: F401  (a fixture: stand-ins for train.py and test.py)
from tiny_runs import ROOT

from mmkerneldna.datasets import ShapesSpec, generate_shapes


@pytest.fixture
def args(tmp_path):
    data = generate_shapes(tmp_path / 'shapes', ShapesSpec(train_images=1, val_images=1, min_side=96, max_side=96))
    return argparse.Namespace(data_root=data, work_dir=tmp_path / 'demo')


@pytest.fixture
def study(args, tools):  # noqa: F811
    return replace(demo.study_of('detection', args), tools=tools)


def test_trains_then_tests_and_does_neither_again(study, args, tools, capsys):  # noqa: F811
    rows = demo.train(study)[2]
    assert [row['score'] for row in rows] == [25.0, 25.0]
    assert [line.split()[0] for line in calls(tools)] == ['train', 'test', 'train', 'test']
    assert '--resume' in calls(tools)[0] and calls(tools)[0].endswith(f'data_root={args.data_root}')
    demo.train(study)
    assert len(calls(tools)) == 4 and 'kdna-r18_fpn_shapes, finished before' in capsys.readouterr().out


def test_an_interrupted_run_is_resumed_with_its_files(study, tools):  # noqa: F811
    run = study.plan()[0][0]
    (run.work_dir / 'epoch_3.pth').write_text('')
    demo.train(study)
    assert (run.work_dir / 'epoch_3.pth').exists()


def test_other_data_start_the_run_anew(study, args, tools):  # noqa: F811
    run = demo.train(study)[0][0]
    (run.work_dir / 'old.pth').write_text('')
    manifest = args.data_root / 'dataset.json'
    manifest.write_text(manifest.read_text().replace('"seed": 0', '"seed": 1'))
    demo.train(replace(demo.study_of('detection', args), tools=tools))
    assert len(calls(tools)) == 8 and not (run.work_dir / 'old.pth').exists()


def test_every_run_is_a_config_and_static_precedes_kerneldna():
    for names in demo.STUDIES.values():
        assert all(demo.config_of(name).is_file() for name in names)
        assert names[1].replace('kdna-', '') == names[0]


def test_a_failed_training_ends_the_demo(study, tools, capsys):  # noqa: F811
    (tools / 'train_dies').touch()
    with pytest.raises(SystemExit) as stop:
        demo.train(study)
    assert stop.value.code == 1 and 'failed, see' in capsys.readouterr().out


def test_a_failing_tool_ends_the_demo_in_one_line(monkeypatch):
    monkeypatch.setattr(demo, 'ROOT', ROOT / 'nowhere')
    with pytest.raises(SystemExit, match='tools/benchmark.py x.py ended with status 2'):
        demo.run_tool('benchmark.py', 'x.py')


def test_the_derived_run_starts_from_the_static_checkpoint_for_a_quarter_of_the_steps(args, tools):  # noqa: F811
    study = replace(demo.study_of('segmentation', args), tools=tools)
    runs, configs, _ = demo.train(study)
    (runs[0].work_dir / 'epoch_3.pth').write_text('weights')
    more = demo.derived_study(study, demo.DERIVED['segmentation'], runs[0], configs[runs[0].variant.name])
    demo.train(more)
    steps = configs[runs[0].variant.name].train_cfg.max_iters // 4
    assert f'--max-iters {steps}' in calls(tools)[-2] and f'load_from={runs[0].checkpoint()}' in calls(tools)[-2]
    assert more.configs()['upernet_derived-r18_shapes'].train_cfg.max_iters == steps

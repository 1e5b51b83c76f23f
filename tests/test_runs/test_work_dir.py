"""Work_dirs: found at any depth, each file read once."""

from pathlib import Path

import pytest
from run_folders import DET_CFG, detection_run, segmentation_run, train_line, write_stamp

from mmkerneldna.runs.results import collect_run
from mmkerneldna.runs.work_dir import NoRunsError, find_runs, read_logs, stamps_of


def test_runs_are_found_at_any_depth(tmp_path):
    runs = {detection_run(tmp_path / 'x' / f'seed_{seed}') for seed in (0, 1)} | {segmentation_run(tmp_path / 's')}
    (tmp_path / 'empty' / '20260101_000000').mkdir(parents=True)
    assert set(find_runs(tmp_path)) == runs
    assert find_runs(tmp_path / 's') == [tmp_path / 's']


def test_no_runs(tmp_path):
    with pytest.raises(NoRunsError, match='holds no run'):
        find_runs(tmp_path)


def test_a_log_is_read_once(tmp_path, monkeypatch):
    work_dir, read, opened = detection_run(tmp_path / 'a', test=0.25), Path.read_text, []
    write_stamp(work_dir, '20260103_000000', DET_CFG.format(seed=0), [train_line(40, 4)])
    monkeypatch.setattr(Path, 'read_text', lambda path, *args, **options: opened.append(path) or read(path, *args, **options))
    collect_run(work_dir)
    logs = [path.parts[-3] for path in opened if path.name == 'scalars.json']
    assert logs == ['20260101_000000', '20260103_000000']


def test_only_timestamps_with_a_step_of_training_have_trained(tmp_path):
    work_dir = detection_run(tmp_path / 'a', test=0.25)
    write_stamp(work_dir, '20260103_000000', DET_CFG.format(seed=0), [{'coco/bbox_mAP': 0.5, 'step': 9}], tail='{"lr": 0.')
    logs = read_logs(stamps_of(work_dir))
    assert [stamp.name for stamp in logs.trained] == ['20260101_000000'] and logs.broken == 1
    assert [record['step'] for record in logs.records] == [10, 1, 20, 2, 30, 3, 9]

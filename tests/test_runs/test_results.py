"""Rows collected from hand-written work_dirs."""

import json
import math
import statistics

import pytest
from run_folders import DET_CFG, SEG_CFG, cost, detection_run, segmentation_run, train_line, write_stamp

from mmkerneldna.measure.benchmark import COST_COLUMNS
from mmkerneldna.measure.tables import cell
from mmkerneldna.runs.results import backbone_label, collect_run, group_rows, sort_rows


def test_tested_run(tmp_path):
    row = collect_run(detection_run(tmp_path / 'a', test=0.25, seed=7))
    assert (row['name'], row['config'], row['task'], row['model']) == ('a', 'faster-rcnn', 'detection', 'FasterRCNN')
    assert (row['backbone'], row['seed'], row['metric'], row['note']) == ('KDNAResNet-18', 7, 'box_ap', None)
    assert (row['score'], row['score_from']) == (25.0, 'test')
    assert (row['box_ap_best'], row['box_ap_best_step']) == (30.0, 2)
    assert (row['box_ap_last'], row['box_ap_test']) == (20.0, 25.0)
    assert row['latency_ms'] == 21.0, 'the cost must come from the evaluation the score comes from'
    assert (row['trained'], row['planned'], row['unit'], row['train_iter_s']) == (3, 3, 'epoch', 0.5)


def disturbed_run(work_dir, disturbed):
    metrics = {'mIoU': 40.0, **cost(30.0), 'cost/disturbed': disturbed, 'cost/repeats': 3.0}
    return write_stamp(work_dir, '20260101_000000', SEG_CFG, [train_line(200, 1), {**metrics, 'step': 200}])


def test_disturbed_latencies_are_marked_and_so_is_a_mean_of_one(tmp_path):
    rows = [collect_run(disturbed_run(tmp_path / str(index), value)) for index, value in enumerate((0.0, 1.0))]
    assert [(row['disturbed'], row['repeats']) for row in rows] == [(False, 3.0), (True, 3.0)]
    quiet, mean = group_rows([*rows, rows[0]], lambda row: 'x' if row['disturbed'] else 'y')
    assert (quiet['disturbed'], mean['disturbed']) == (False, True)
    (joined,) = group_rows(rows, lambda row: 'all')
    assert joined['disturbed'] is True and 'disturbed_std' not in joined
    assert cell(joined, COST_COLUMNS[0]) == '30.00 ± 0.00*'


def test_without_a_test_the_last_validation_counts(tmp_path):
    row = collect_run(detection_run(tmp_path / 'a'))
    assert (row['score'], row['score_from'], row['box_ap_test']) == (20.0, 'last val', None)
    assert row['latency_ms'] == 20.0 and row['height'] == 64
    assert row['box_ap50_best'] == 60.0


def test_segmentation(tmp_path):
    row = collect_run(segmentation_run(tmp_path / 's'))
    assert (row['task'], row['metric'], row['score'], row['aacc']) == ('segmentation', 'miou', 40.0, 80.0)
    assert (row['backbone'], row['seed'], row['note']) == ('MobileNetV2', None, None)
    assert (row['unit'], row['trained']) == ('iter', 200)


def test_killed_run_says_how_far_it_got(tmp_path):
    records = [train_line(10, 1), {'coco/bbox_mAP': 0.1, 'step': 1}, train_line(20, 2)]
    work_dir = write_stamp(tmp_path / 'a', '20260101_000000', DET_CFG.format(seed=0), records, tail='{"lr": 0.1, "lo')
    assert collect_run(work_dir)['note'] == ('epoch 1 of 3 done; no cost: CostHook was not on; 1 log line(s) unreadable')


def test_a_test_does_not_change_what_was_planned(tmp_path):
    short = SEG_CFG.replace('200', '45')
    assert short != SEG_CFG
    write_stamp(tmp_path / 'a', '20260101_000000', short, [train_line(45, 1), {'mIoU': 30.0, **cost(9.0), 'step': 45}])
    write_stamp(tmp_path / 'a', '20260101_010000', SEG_CFG, [])
    row = collect_run(tmp_path / 'a')
    assert (row['trained'], row['planned'], row['note']) == (45, 45, None)


def test_run_without_evaluation_has_empty_cells(tmp_path):
    work_dir = write_stamp(tmp_path / 'a', '20260101_000000', SEG_CFG, [train_line(10, 1)])
    row = collect_run(work_dir)
    assert row['score'] is row['metric'] is None and 'latency_ms' not in row
    assert row['note'] == 'iter 0 of 200 done; no evaluation yet'


def test_last_checkpoint_tells_progress_between_validations(tmp_path):
    work_dir = write_stamp(tmp_path / 'a', '20260101_000000', SEG_CFG, [train_line(110, 1)])
    (work_dir / 'last_checkpoint').write_text('/gone/iter_100.pth')
    assert collect_run(work_dir)['trained'] == 100


def test_resumed_run_is_one_run_and_repeated_steps_count_once(tmp_path):
    work_dir = tmp_path / 'a'
    cfg = DET_CFG.format(seed=0)
    write_stamp(work_dir, '20260101_000000', cfg, [train_line(10, 1, 1.0), {'coco/bbox_mAP': 0.5, 'step': 1}])
    later = [train_line(10, 1, 3.0), {'coco/bbox_mAP': 0.1, **cost(9.0), 'step': 1}]
    write_stamp(work_dir, '20260101_010000', cfg, later)
    row = collect_run(work_dir)
    assert (row['box_ap_best'], row['train_iter_s'], row['latency_ms']) == (10.0, 3.0, 9.0)


def test_not_a_number_is_no_score(tmp_path):
    records = [{'mIoU': math.nan, 'step': 100}]
    assert collect_run(write_stamp(tmp_path / 'a', '20260101_000000', SEG_CFG, records))['score'] is None


def test_environment_of_the_measurement(tmp_path):
    work_dir = detection_run(tmp_path / 'a')
    facts = dict(environment=dict(torch='2.9', cpu='some CPU', threads='2'))
    (work_dir / '20260101_000000' / 'cost.json').write_text(json.dumps(facts))
    assert collect_run(work_dir)['device'] == 'some CPU, 2 threads'


@pytest.mark.parametrize(
    'backbone, label',
    [
        (dict(type='ResNet', depth=18), 'ResNet-18'),
        (dict(type='ResNet', depth=18, conv_cfg=dict(type='ODConv2d')), 'ResNet-18 ODConv2d'),
        (dict(type='MobileNetV2'), 'MobileNetV2'),
        (dict(type='DynamicConvs', conv=dict(type='SEConv2d'), module=dict(type='ResNet', depth=50)), 'ResNet-50 SEConv2d'),
        (dict(type='KernelDNA', plan='auto', module=dict(type='ResNeXt', depth=50)), 'ResNeXt-50 KernelDNA'),
        (None, None),
    ],
)
def test_label_of_the_backbone(backbone, label):
    assert backbone_label(backbone) == label


def test_sorting_puts_the_unscored_last():
    rows = [dict(name='c', score=None), dict(name='a', score=1.0), dict(name='b', score=2.0), dict(name='d', score=1.0)]
    assert [row['name'] for row in sort_rows(rows)] == ['b', 'a', 'd', 'c']


def test_mean_and_spread_over_seeds(tmp_path):
    rows = [
        collect_run(detection_run(tmp_path / f'seed_{seed}', test=score, latency=latency, seed=seed))
        for seed, (score, latency) in enumerate([(0.2, 10.0), (0.3, 14.0), (0.25, 15.0)])
    ]
    (row,) = group_rows(rows, lambda row: row['config'])
    assert (row['name'], row['runs'], row['scored'], row['seed']) == ('faster-rcnn', 3, 3, None)
    assert row['score'] == pytest.approx(25.0) and row['score_std'] == pytest.approx(statistics.stdev([20, 30, 25]))
    assert row['latency_ms'] == pytest.approx(14.0) and row['gmacs_std'] == 0
    assert row['backbone'] == 'KDNAResNet-18'


def test_one_seed_has_no_spread_and_a_failed_one_is_told():
    scored = dict(name='x, seed 0', task='detection', score=1.0, note=None)
    failed = dict(name='x, seed 1', score=None, note='failed')
    (row,) = group_rows([scored, failed], lambda row: 'x')
    assert (row['score'], row['runs'], row['scored'], row['note']) == (1.0, 2, 1, 'x, seed 1: failed')
    assert 'score_std' not in row and row['task'] == 'detection'

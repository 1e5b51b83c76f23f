"""mmkerneldna/measure/paired.py: rows of a call and what it is compared with; no time is asserted."""

import argparse
import json

import pytest
import torch

from mmkerneldna.measure.paired import Case, measure_pair, report_pairs


def case(call=lambda: torch.zeros(1) + 1):
    return Case('layer', 'some', call, 'all', lambda: torch.zeros(1) + 2, 1.0)


def test_a_row_has_both_times_and_their_ratio():
    row = measure_pair(case(), 'cpu', 2, 1)
    assert row['ratio'] == row['ms'] / row['baseline_ms'] and row['target'] == 1.0 and 'error' not in row


def test_calls_run_without_gradients():
    seen = []
    measure_pair(case(lambda: seen.append(torch.is_grad_enabled())), 'cpu', 2, 0)
    assert seen and not any(seen)


def test_a_call_that_fails_is_a_row_that_says_so():
    def fails():
        raise RuntimeError('no such kernel')

    row = measure_pair(case(fails), 'cpu', 2, 1)
    assert 'no such kernel' in row['error'] and 'ratio' not in row


@pytest.mark.parametrize('written', [False, True])
def test_table_and_file(written, tmp_path, capsys):
    path = tmp_path / 'rows.json' if written else None
    report_pairs([case()], argparse.Namespace(repeats=2, warmup=0, json=path))
    said = capsys.readouterr().out
    assert 'compared with' in said and 'layer' in said and '2 rounds' in said
    assert (not written) or json.loads(path.read_text())['rows'][0]['baseline'] == 'all'

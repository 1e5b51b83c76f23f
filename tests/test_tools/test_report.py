"""tools/report.py on hand-written work_dirs."""

import csv
import json
import re
from html.parser import HTMLParser

import pytest
from run_folders import detection_run, segmentation_run
from tiny_runs import run_tool


class Page(HTMLParser):
    """Tables as lists of lines of cells, and everything a browser would fetch."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.links = [], []
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.links += [value for key, value in attributes if key in ('src', 'href')]
        if tag == 'table':
            self.tables.append([])
        elif tag == 'tr':
            self.tables[-1].append([])
        elif tag in ('td', 'th'):
            self.in_cell = True
            self.tables[-1][-1].append('')

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag not in ('td', 'th')

    def handle_data(self, data):
        if self.in_cell:
            self.tables[-1][-1][-1] += data


@pytest.fixture
def runs(tmp_path):
    detection_run(tmp_path / 'runs' / 'static', test=0.25, latency=20.0)
    detection_run(tmp_path / 'runs' / 'kdna', test=0.28, latency=24.0)
    detection_run(tmp_path / 'runs' / 'going_on', scores=())
    segmentation_run(tmp_path / 'runs' / 'fcn')
    return tmp_path / 'runs'


def make(tmp_path, *argv):
    assert run_tool('report.py', [*map(str, argv), '--out-dir', str(tmp_path / 'out')]) == 0
    return tmp_path / 'out'


def as_rows(table):
    head, *lines = table
    return [dict(zip(head, line)) for line in lines]


def test_page_is_complete_and_self_contained(runs, tmp_path):
    text = (make(tmp_path, runs) / 'report.html').read_text()
    page = Page(text)
    detection, segmentation = map(as_rows, page.tables)
    assert [row['run'] for row in detection] == ['kdna', 'static', 'going_on']
    best, _, unfinished = detection
    assert (best['#'], best['box AP'], best['score from'], best['best val box AP']) == ('1', '28.0', 'test', '30.0')
    assert (best['latency ms'], best['GMACs']) == ('25.00', '2.000')
    assert (best['unique M'], best['deployed M']) == ('10.000', '15.000')
    assert (unfinished['box AP'], unfinished['latency ms']) == ('-', '-') and 'no evaluation' in unfinished['note']
    (fcn,) = segmentation
    assert (fcn['run'], fcn['mIoU'], fcn['score from']) == ('fcn', '40.0', 'last val')
    assert len(page.links) == 1 and page.links[0].startswith('data:image/png;base64,')
    assert not re.search(r'https?://|url\(|@import', text)


def test_other_formats(runs, tmp_path):
    out = make(tmp_path, runs)
    assert (out / 'pareto.png').read_bytes().startswith(b'\x89PNG')
    rows = json.loads((out / 'report.json').read_text())['rows']
    assert [row['name'] for row in rows] == ['kdna', 'static', 'going_on', 'fcn']
    lines = csv.DictReader((out / 'report.csv').open())
    assert [line['score'] for line in lines] == ['28.000000000000004', '25.0', '', '40.0']
    text = (out / 'report.md').read_text()
    assert '## Detection' in text and '## Segmentation' in text and '![accuracy over cost](pareto.png)' in text


def test_seeds_become_mean_and_spread(tmp_path):
    for seed, score in enumerate((0.2, 0.3)):
        detection_run(tmp_path / 'runs' / f'seed_{seed}', test=score, seed=seed)
    page = Page((make(tmp_path, tmp_path / 'runs', '--seeds') / 'report.html').read_text())
    (row,) = as_rows(page.tables[0])
    assert (row['run'], row['seeds'], row['box AP']) == ('faster-rcnn', '2', '25.0 ± 7.1')
    assert row['latency ms'] == '21.00 ± 0.00'


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = [detection_run(tmp_path / side / 'net') for side in 'ab']
    rows = json.loads((make(tmp_path, *folders) / 'report.json').read_text())['rows']
    assert {row['name'] for row in rows} == {str(folder) for folder in folders}


def test_nothing_to_plot(tmp_path):
    out = make(tmp_path, detection_run(tmp_path / 'a', scores=()))
    assert not (out / 'pareto.png').exists() and 'nothing to plot' in (out / 'report.html').read_text()


def test_text_from_a_run_is_escaped(tmp_path):
    out = make(tmp_path, detection_run(tmp_path / '<script>alert(1)<'))
    assert '<script>alert' not in (out / 'report.html').read_text()


def test_missing_folders(tmp_path, capsys):
    assert run_tool('report.py', [str(tmp_path / 'none')]) == 2
    assert run_tool('report.py', [str(tmp_path)]) == 2
    errors = capsys.readouterr().err
    assert 'does not exist' in errors and 'holds no run' in errors

"""Cells and files of tables."""

import csv
import io
import json

import pytest
from rich.console import Console

from mmkerneldna.measure.tables import (
    Column,
    cell,
    doubt_notes,
    failure_notes,
    filled_columns,
    markdown,
    rich_table,
    write_csv,
    write_json,
)

MS = Column('ms', 'ms', 1, error='error')
AP = Column('ap', 'AP', 1)
ROWS = [
    dict(name='a', ms=3.14159, ap=None, error=None, batch=1, height=8, width=9),
    dict(name='b|c', ms=None, ap=20.0, ap_std=1.25, error='KeyError: [x]', batch=1, height=8, width=9),
]


@pytest.mark.parametrize(
    'row, column, text',
    [
        (dict(ms=3.14159), MS, '3.1'),
        (dict(ms=3), MS, '3.0'),
        (dict(ms=3), Column('ms', 'ms', 0), '3'),
        (dict(ms=0.0), MS, '0.0'),
        (dict(ms=None), MS, '-'),
        (dict(), MS, '-'),
        (dict(ms=None, error='OOM'), MS, 'OOM'),
        (dict(ms=None, error='KeyError: no such net'), MS, 'KeyError'),
        (dict(ap=None, error='OOM'), AP, '-'),
        (dict(ap=20.04, ap_std=1.25), AP, '20.0 ± 1.2'),
        (dict(ap=0.204, ap_std=0.1), Column('ap', 'AP', 1, scale=100), '20.4 ± 10.0'),
        (dict(ap=True), AP, 'True'),
        (dict(ms=3, busy='threads waited'), Column('ms', 'ms', 1, doubt='busy'), '3.0*'),
        (dict(ms=3, ms_std=1, busy=True), Column('ms', 'ms', 1, doubt='busy'), '3.0 ± 1.0*'),
        (dict(ms=3, busy=None), Column('ms', 'ms', 1, doubt='busy'), '3.0'),
        (dict(ms=None, busy=True), Column('ms', 'ms', 1, doubt='busy'), '-'),
    ],
)
def test_cell(row, column, text):
    assert cell(row, column) == text


def test_the_mark_is_explained_where_there_is_one():
    columns = [Column('ms', 'ms', doubt='busy'), AP]
    assert doubt_notes([dict(ms=1), dict(ms=2, busy='')], columns) == []
    (note,) = doubt_notes([dict(ms=1), dict(ms=2, busy=True)], columns)
    assert note.startswith('* the machine was busy')


def test_markdown():
    assert markdown(ROWS, [Column('name', 'net'), MS, AP]).splitlines() == [
        '| net | ms | AP |',
        '| --- | --- | --- |',
        '| a | 3.1 | - |',
        '| b\\|c | KeyError | 20.0 ± 1.2 |',
    ]


def test_rich_table_shows_every_cell():
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(rich_table(ROWS, [Column('name', 'net'), MS, AP, Column('error', 'why')]))
    text = console.export_text()
    for expected in ('3.1', 'b|c', 'KeyError: [x]', '20.0 ± 1.2'):
        assert expected in text


def test_columns_that_say_nothing_are_left_out():
    assert filled_columns([MS, AP, Column('none', 'none')], ROWS) == [MS, AP]


def test_failures_in_full_and_once():
    assert failure_notes([dict(ROWS[1], train_error='KeyError: [x]'), ROWS[0]]) == ['b|c (batch 1, 8x9): KeyError: [x]']


def test_csv_is_unrounded_and_complete(tmp_path):
    write_csv(tmp_path / 'a.csv', ROWS)
    first, second = csv.DictReader((tmp_path / 'a.csv').open())
    assert first['ms'] == '3.14159' and first['ap'] == '' and first['ap_std'] == ''
    assert second['ap_std'] == '1.25' and second['error'] == 'KeyError: [x]'


def test_json_replaces_the_file_in_one_step(tmp_path):
    path = tmp_path / 'a.json'
    write_json(path, [1])
    with pytest.raises(ValueError):
        circle = []
        circle.append(circle)
        write_json(path, circle)
    assert json.loads(path.read_text()) == [1]

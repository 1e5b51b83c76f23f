"""Rows of plain dicts as tables: rich, Markdown, CSV, JSON."""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Row = Mapping[str, Any]
MISSING = '-'
#: behind a number that the machine disturbed, and what it means
DOUBT = '*'
DOUBT_MEANING = 'the machine was busy with something else during this measurement; measure again when it is idle'


@dataclass(frozen=True)
class Column:
    """How one key of a row is shown.

    Attributes:
        key (str): of the row. If the row also has ``<key>_std``, the cell reads ``mean ± std``.
        title (str): with the unit.
        digits (int): behind the point.
        scale (float): shown value over stored value, 100 for a fraction shown in percent.
        error (str, optional): key of the row that says why the value is missing.
        doubt (str, optional): key of the row that, if it is true, puts :data:`DOUBT` behind the value.
    """

    key: str
    title: str
    digits: int = 2
    scale: float = 1
    error: str | None = None
    doubt: str | None = None


def cell(row: Row, column: Column) -> str:
    """Text of a cell: the value; for a missing one the short name of its error; ``-`` if there is none.

    Examples:
        >>> cell(dict(ms=3.14159), Column('ms', 'ms'))
        '3.14'
        >>> cell(dict(ms=3.14159, ms_std=0.5), Column('ms', 'ms'))
        '3.14 ± 0.50'
        >>> cell(dict(ms=None, error='OOM'), Column('ms', 'ms', error='error'))
        'OOM'
        >>> cell(dict(ms=3.14159, disturbed='median 3.1 times the fastest'), Column('ms', 'ms', doubt='disturbed'))
        '3.14*'
    """
    value = row.get(column.key)
    if value is None:
        reason = row.get(column.error) if column.error else None
        return str(reason).split(':')[0] if reason else MISSING
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    text = _number(value * column.scale, column)
    spread = row.get(f'{column.key}_std')
    text = text if spread is None else f'{text} ± {_number(spread * column.scale, column)}'
    return text + DOUBT if column.doubt and row.get(column.doubt) else text


def _number(value: float, column: Column) -> str:
    return f'{value:.{column.digits}f}'


def filled_columns(columns: Sequence[Column], rows: Sequence[Row]) -> list[Column]:
    """The columns that have something to say in at least one row."""
    return [column for column in columns if any(cell(row, column) != MISSING for row in rows)]


def rich_table(rows: Sequence[Row], columns: Sequence[Column], title: str = '') -> Table:
    """For the terminal; text left, numbers right and whole under stacked titles, failures red."""
    table = Table(title=title or None, title_justify='left')
    for column in columns:
        numeric = any(isinstance(row.get(column.key), (int, float)) for row in rows)
        table.add_column(
            column.title.replace(' ', '\n') if numeric else column.title,
            overflow='fold',
            justify='right' if numeric else 'left',
            no_wrap=numeric,
        )
    for row in rows:
        table.add_row(*(_styled(row, column) for column in columns))
    return table


def wide_console() -> Console:
    """A console that does not squeeze a table when the output is a file, a pipe or a narrow window."""
    console = Console()
    return console if console.width >= 180 else Console(width=180)


def _styled(row: Row, column: Column) -> str:
    text = cell(row, column).replace('[', '\\[')
    failed = row.get(column.key) is None and text != MISSING
    return f'[red]{text}[/red]' if failed else text


def markdown(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """A Markdown table."""
    lines = [[column.title for column in columns], ['---'] * len(columns)]
    lines += [[cell(row, column).replace('|', '\\|') for column in columns] for row in rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines) + '\n'


def failure_notes(rows: Sequence[Row], keys: Sequence[str] = ('error', 'train_error')) -> list[str]:
    """The failures in full, one line each: a cell has room for the name only."""
    notes = [
        f'{row["name"]} (batch {row["batch"]}, {row["height"]}x{row["width"]}): {row[key]}'
        for row in rows
        for key in keys
        if row.get(key)
    ]
    return list(dict.fromkeys(notes))


def doubt_notes(rows: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    """The line that explains :data:`DOUBT`, where a cell of the table has it."""
    doubtful = any(cell(row, column).endswith(DOUBT) for row in rows for column in columns if column.doubt)
    return [f'{DOUBT} {DOUBT_MEANING}'] if doubtful else []


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """All keys of all rows, unrounded; a missing value is an empty field."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    temporary = path.with_name(path.name + '.tmp')
    with open(temporary, 'w', newline='') as file:
        writer = csv.DictWriter(file, keys)
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)


def write_json(path: Path, content: Any) -> None:
    """Written whole or not at all: a reader, or a resumed run, never sees half a file."""
    write_text(path, json.dumps(content, indent=2, default=str) + '\n')


def write_text(path: Path, text: str) -> None:
    """As :func:`write_json`, for any text."""
    temporary = path.with_name(path.name + '.tmp')
    temporary.write_text(text)
    os.replace(temporary, path)

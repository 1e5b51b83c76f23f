"""The table of formats: score, milliseconds and size of one model in each, on the terminal and as Markdown, HTML and JSON."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ..measure.tables import Column, doubt_notes, filled_columns, markdown, rich_table, write_json, write_text
from .report import html_page_of, html_table
from .scores import SCORES

Row = dict[str, Any]
#: scores that the table has; the files of a run have all
SHOWN = ('box_ap', 'mask_ap', 'box_ap50', 'voc_ap', 'miou', 'aacc')


def format_columns(rows: Sequence[Row], batches: Sequence[int]) -> list[Column]:
    """Those that have something to say."""
    scores = [Column(score.name, score.title, 2) for score in SCORES if score.name in SHOWN]
    columns = [Column('name', 'format'), *scores, Column('score_change', 'change', 2)]
    for batch in batches:
        b = f'b{batch}'
        columns.append(Column(f'{b}_ms', f'{b} ms', 1, error=f'{b}_error', doubt=f'{b}_disturbed'))
        columns.append(Column(f'{b}_ratio', f'{b} x first', 3, doubt=f'{b}_disturbed'))
    return filled_columns([*columns, Column('file_mb', 'MB', 1), Column('note', 'note')], rows)


def complete_rows(rows: Sequence[Row], batches: Sequence[int]) -> None:
    """Add what compares a row with the first one: change of the main score, and ratios of latencies."""
    if not rows:
        return
    first = rows[0]
    for row in rows:
        known = row.get('main') is not None and first.get('main') is not None
        row['score_change'] = row['main'] - first['main'] if known and row is not first else None
        for batch in batches:
            mine, its = row.get(f'b{batch}_ms'), first.get(f'b{batch}_ms')
            row[f'b{batch}_ratio'] = mine / its if mine and its else None


def write_format_table(folder: Path, title: str, facts: Sequence[str], rows: Sequence[Row], content: dict, batches) -> None:
    """Write ``formats.json``, ``.md`` and ``.html``.

    Args:
        folder: for the files.
        title: of the table.
        facts: lines below it, such as the environment.
        rows: complete, see :func:`complete_rows`.
        content: more for the JSON.
        batches: that were timed.
    """
    columns = format_columns(rows, batches)
    notes = [*facts, *doubt_notes(rows, columns)]
    write_json(folder / 'formats.json', dict(**content, rows=rows))
    write_text(folder / 'formats.md', '\n\n'.join([f'# {title}', *notes, markdown(rows, columns)]))
    body = [f'<h1>{html.escape(title)}</h1>', *(f'<p class="fact">{html.escape(note)}</p>' for note in notes)]
    write_text(folder / 'formats.html', html_page_of(title, '\n'.join([*body, html_table(rows, columns)])))


def show_format_table(console: Console, title: str, facts: Sequence[str], rows: Sequence[Row], batches: Sequence[int]) -> None:
    """The table, and the facts below it."""
    columns = format_columns(rows, batches)
    console.print(rich_table(rows, columns, title))
    for fact in [*facts, *doubt_notes(rows, columns)]:
        console.print(fact, highlight=False, markup=False, style='dim')

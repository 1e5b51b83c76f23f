"""Tables, plot and pages of a set of runs."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ..measure.benchmark import COST_COLUMNS, FILE_COLUMN
from ..measure.tables import Column, cell, doubt_notes, filled_columns, markdown, rich_table, write_csv, write_json, write_text
from .pareto import pareto_figure
from .results import Row, sort_rows
from .scores import SCORES

LEAD_COLUMNS = (
    Column('number', '#', 0),
    Column('name', 'run'),
    Column('model', 'model'),
    Column('backbone', 'backbone'),
    Column('runs', 'seeds', 0),
)
TAIL_COLUMNS = (
    Column('batch', 'batch', 0),
    Column('height', 'H', 0),
    Column('width', 'W', 0),
    Column('device', 'device'),
    Column('cost_from', 'cost from'),
    Column('train_iter_s', 'train s/iter', 3),
    Column('note', 'note'),
)
IN_FILES_ONLY = {
    'model',
    'box_ap50',
    'box_ap_best',
    'box_ap_last',
    'mask_ap_best',
    'mask_ap_last',
    'miou_best',
    'miou_last',
    'macc',
    'aacc',
    'latency_p90_ms',
    'batch',
    'height',
    'width',
    'device',
    'cost_from',
    'train_iter_s',
}
TITLES = {'detection': 'Detection', 'segmentation': 'Segmentation', None: 'Other runs'}


@dataclass(frozen=True)
class Report:
    """A set of runs, ready to be shown.

    Attributes:
        title (str): of the page.
        tables: (task, rows sorted by score and numbered); detection and segmentation apart.
        facts (list[str]): lines below the title, such as the environment.
    """

    title: str
    tables: list[tuple[str, list[Row]]]
    facts: Sequence[str] = ()


def make_report(rows: Sequence[Row], title: str, facts: Sequence[str] = ()) -> Report:
    """Split rows by task, sort and number them."""
    tasks = [task for task in TITLES if any(row.get('task') == task for row in rows)]
    tables = []
    for task in tasks:
        ordered = sort_rows(row for row in rows if row.get('task') == task)
        tables.append((TITLES[task], [dict(number=number, **row) for number, row in enumerate(ordered, 1)]))
    return Report(title, tables, [*facts, *doubt_notes(rows, report_columns(rows))])


def show_report(report: Report, console: Console) -> None:
    """The tables, as far as they fit a terminal, and the facts below them."""
    for task, table in report.tables:
        console.print(rich_table(table, terminal_columns(table), task))
    for fact in report.facts:
        console.print(fact, highlight=False, markup=False, soft_wrap=True)


def score_columns() -> list[Column]:
    """The score of each metric, where it is from, and the best and last validation of the main ones."""
    columns = [Column(score.name, score.title, 1) for score in SCORES]
    for score in SCORES:
        if score.name in ('box_ap', 'mask_ap', 'miou'):
            columns += [
                Column(f'{score.name}_best', f'best val {score.title}', 1),
                Column(f'{score.name}_last', f'last val {score.title}', 1),
            ]
    return [*columns, Column('score_from', 'score from'), Column('score_gain', 'gain', 2)]


def terminal_columns(rows: Sequence[Row]) -> list[Column]:
    """Those that fit side by side in a terminal; the files have the rest."""
    return [column for column in report_columns(rows) if column.key not in IN_FILES_ONLY]


def report_columns(rows: Sequence[Row]) -> list[Column]:
    """All columns that say something about these rows: accuracy next to cost."""
    return filled_columns([*LEAD_COLUMNS, *score_columns(), *COST_COLUMNS, FILE_COLUMN, *TAIL_COLUMNS], rows)


def write_report(report: Report, out_dir: Path) -> dict[str, Path]:
    """Write ``report.html`` (self-contained), ``.md``, ``.csv``, ``.json``, and ``pareto.png`` if there is a plot.

    Returns:
        dict: kind -> path.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    paths = {kind: out_dir / f'report.{kind}' for kind in ('html', 'md', 'csv', 'json')}
    figure = pareto_figure(report.tables)
    png = _png(figure) if figure is not None else None
    if png is not None:
        paths['png'] = out_dir / 'pareto.png'
        paths['png'].write_bytes(png)
    rows = [row for _, table in report.tables for row in table]
    write_text(paths['html'], html_page(report, png))
    write_text(paths['md'], markdown_page(report, png is not None))
    write_csv(paths['csv'], rows)
    write_json(paths['json'], dict(title=report.title, facts=list(report.facts), rows=rows))
    return paths


def _png(figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=140)
    return buffer.getvalue()


def markdown_page(report: Report, with_plot: bool) -> str:
    """The tables, and the plot by its file name."""
    parts = [f'# {report.title}', '\n'.join(f'- {fact}' for fact in report.facts)]
    for task, rows in report.tables:
        parts += [f'## {task}', markdown(rows, report_columns(rows))]
    return '\n\n'.join(filter(None, [*parts, '![accuracy over cost](pareto.png)' if with_plot else ''])) + '\n'


def html_page(report: Report, png: bytes | None) -> str:
    """One file: style, script and picture are in it, nothing is fetched. A click on a head sorts."""
    parts = [f'<h1>{html.escape(report.title)}</h1>']
    parts += [f'<p class="fact">{html.escape(fact)}</p>' for fact in report.facts]
    for task, rows in report.tables:
        parts += [f'<h2>{html.escape(task)}</h2>', html_table(rows, report_columns(rows))]
    parts.append(_html_plot(png))
    return html_page_of(report.title, '\n'.join(parts))


def html_page_of(title: str, body: str) -> str:
    """A page with this package's style and tables that sort."""
    return _PAGE.format(title=html.escape(title), body=body)


def _html_plot(png: bytes | None) -> str:
    if png is None:
        return '<p>No run has both a score and a latency: nothing to plot.</p>'
    picture = base64.b64encode(png).decode()
    return (
        '<h2>Accuracy over cost</h2><p>Dashed: the runs that no other run beats in both. The numbers are those of '
        f'the tables.</p><img alt="accuracy over cost" src="data:image/png;base64,{picture}">'
    )


def html_table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """A table for :func:`html_page_of`."""
    head = ''.join(f'<th>{html.escape(column.title)}</th>' for column in columns)
    body = '\n'.join('<tr>' + ''.join(_html_cell(row, column) for column in columns) + '</tr>' for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _html_cell(row: Row, column: Column) -> str:
    value = row.get(column.key)
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    order = f' class="number" data-value="{value}"' if numeric else ''
    return f'<td{order}>{html.escape(cell(row, column))}</td>'


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1400px; padding: 0 1rem; color: #1b1f24 }}
.wide {{ overflow-x: auto }} .fact {{ color: #57606a; margin: .2rem 0 }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}
th, td {{ padding: .3rem .7rem; border-bottom: 1px solid #d0d7de; text-align: left; white-space: nowrap }}
th {{ cursor: pointer; background: #f6f8fa }} td.number {{ text-align: right }} tbody tr:hover {{ background: #f6f8fa }}
td:last-child {{ white-space: normal; min-width: 8rem }} img {{ max-width: 100% }}
</style></head><body>
{body}
<script>
for (const head of document.querySelectorAll('th')) head.onclick = () => {{
  const body = head.closest('table').tBodies[0], at = head.cellIndex, down = head.dataset.down !== '1';
  head.dataset.down = down ? '1' : '0';
  const value = cell => cell.dataset.value !== undefined ? +cell.dataset.value : cell.innerText;
  const key = row => value(row.cells[at]);
  const order = (a, b) => typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === 'number' ? -1 : 1;
  [...body.rows].sort((a, b) => (down ? -1 : 1) * order(key(a), key(b))).forEach(row => body.append(row));
}};
</script></body></html>
"""

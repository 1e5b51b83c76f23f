"""A sample of tools/coverage.py: what docs/coverage.md says of ten folders is what comes out."""

import re

import pytest
from processes import run_forked
from tiny_runs import ROOT, run_tool

from mmkerneldna.variants import RIVALS

# small nets, one of a kind
FOLDERS = (
    'mmdet/ssd',
    'mmdet/yolox',
    'mmdet/regnet',
    'mmdet/faster_rcnn',
    'mmdet/swin',
    'mmdet/convnext',
    'mmseg/unet',
    'mmseg/erfnet',
    'mmseg/mobilenet_v2',
    'mmseg/ddrnet',
)


def table(text):
    """{package/folder: {column: cell}} of a coverage document."""
    rows, package, columns = {}, None, []
    for line in text.splitlines():
        package = line[3:] if line.startswith('## ') else package
        cells = [cell.strip() for cell in line.strip('|').split('|')]
        if cells[0] == 'folder':
            columns = cells
        elif package and line.startswith('|') and not set(cells[0]) <= {'-'}:
            rows[f'{package}/{cells[0]}'] = dict(zip(columns, cells, strict=True))
    return rows


@pytest.fixture(scope='module')
def sample(tmp_path_factory):
    out = tmp_path_factory.mktemp('coverage') / 'sample.md'
    argv = ['--folders', *FOLDERS, '--variants', 'kdna', 'odconv4x', '--out', str(out)]
    # a process of its own: the tool replaces torch's random draws
    assert run_forked(run_tool, 'coverage.py', argv) == 0
    return table(out.read_text())


@pytest.mark.parametrize('folder', FOLDERS)
def test_the_document_is_true(sample, folder):
    documented = table((ROOT / 'docs/coverage.md').read_text())[folder]
    assert sample[folder] == {column: documented[column] for column in sample[folder]}


def test_most_folders_work():
    """What the project promises for KernelDNA and ODConv, and that the sums are those of the table."""
    text = (ROOT / 'docs/coverage.md').read_text()
    rows = table(text)
    for package, promised in (('mmdet', 108), ('mmseg', 42)):
        cells = [row for name, row in rows.items() if name.startswith(f'{package}/')]
        stated = re.search(rf'## {package}\n\nOf {len(cells)} folders work: (.+)\.\n', text).group(1)
        sums = {name: int(number) for name, number in (part.split() for part in stated.split(', '))}
        assert list(sums) == ['kdna', *RIVALS] == list(cells[0])[3:]
        assert sums == {name: sum(row[name] != 'no' for row in cells) for name in sums}
        assert sums['kdna'] >= promised and sums['odconv4x'] >= promised

"""A sample of tools/coverage.py: what docs/coverage.md says of ten folders is what comes out."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
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
    """{(package, folder): cells} of a coverage document."""
    rows, package = {}, None
    for line in text.splitlines():
        package = line[3:] if line.startswith('## ') else package
        cells = [cell.strip() for cell in line.strip('|').split('|')]
        if package and line.startswith('|') and cells[0] != 'folder' and not set(cells[0]) <= {'-'}:
            rows[f'{package}/{cells[0]}'] = cells[1:]
    return rows


@pytest.fixture(scope='module')
def sample(tmp_path_factory):
    out = tmp_path_factory.mktemp('coverage') / 'sample.md'
    # a process of its own: the tool replaces torch's random draws
    subprocess.run(
        [
            sys.executable,
            str(ROOT / 'tools/coverage.py'),
            '--folders',
            *FOLDERS,
            '--variants',
            'kdna',
            'odconv4x',
            '--out',
            str(out),
        ],
        check=True,
        capture_output=True,
    )
    return table(out.read_text())


@pytest.mark.parametrize('folder', FOLDERS)
def test_the_document_is_true(sample, folder):
    assert sample[folder] == table((ROOT / 'docs/coverage.md').read_text())[folder]


def test_most_folders_work():
    """What the project promises: all but some ten of each package."""
    text = (ROOT / 'docs/coverage.md').read_text()
    rows = table(text)
    for package, kdna, odconv in (('mmdet', 108, 108), ('mmseg', 42, 42)):
        cells = [row for name, row in rows.items() if name.startswith(f'{package}/')]
        assert sum(row[2] != 'no' for row in cells) >= kdna and sum(row[3] != 'no' for row in cells) >= odconv
        stated = re.search(rf'## {package}\n\nOf {len(cells)} folders work: kdna (\d+), odconv4x (\d+)', text)
        assert [int(n) for n in stated.groups()] == [sum(row[i] != 'no' for row in cells) for i in (2, 3)]

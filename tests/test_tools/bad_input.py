"""What the tests of bad input share: odd files, and the one line that a tool says about them."""

import re

import pytest
import torch

from mmkerneldna.datasets import check_data
from mmkerneldna.errors import one_line_errors

CHECKPOINT = '{place}/weights.pth'
TEXTS = {
    'notes.txt': 'a note',
    'empty.py': '',
    'raises.py': 'model = undefined',
    'syntax.py': 'model = dict(',
    'list.json': '[1, 2]',
    'broken.json': '{"model": ',
    'base.py': "_base_ = 'missing_base.py'",
    'bare.py': "model = dict(type='FasterRCNN')",
    'empty.pth': '',
    'spoilt_shapes/dataset.json': '[]',
    'run/20260101_000000/20260101_000000.json': '{}',
}


def write_odd_files(folder):
    """Files that are not what a tool reads."""
    for name, text in TEXTS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / 'binary.py').write_bytes(bytes(range(256)))
    torch.save([1, 2], folder / 'list.pth')
    torch.save(dict(state_dict={'a.weight': torch.zeros(2)}), folder / 'other.pth')
    torch.save(dict(state_dict={'a.weight': torch.zeros(2)}), folder / 'weights.pth')
    return folder


def error_line(capfd, status):
    """The one ``error:`` line of a run that ended with status 2."""
    said = capfd.readouterr()
    assert status == 2, said.err[-2000:]
    assert 'Traceback' not in said.err + said.out, said.err[-2000:]
    lines = [line for line in said.err.splitlines() if re.match(r'([\w.]+: )?error:', line)]
    assert len(lines) == 1, said.err[-2000:]
    return lines[0]


def command_line(value):
    """A case's command as the name of its test."""
    return ' '.join(value) if isinstance(value, list) else ''


def refused_data(capfd, cfg):
    with pytest.raises(SystemExit) as stop, one_line_errors():
        check_data(cfg, ('train',))
    return error_line(capfd, stop.value.code)

import re

import pytest
from bad_input import error_line, write_odd_files
from mmengine.logging import MMLogger
from tiny_runs import DETECTOR, ROOT, SEGMENTER, run_tool

from mmkerneldna.datasets import ShapesSpec, generate_shapes


@pytest.fixture(scope='session')
def shapes(tmp_path_factory):
    """A generated set of a dozen small images."""
    spec = ShapesSpec(train_images=12, val_images=2, min_side=96, max_side=128)
    return generate_shapes(tmp_path_factory.mktemp('tiny') / 'shapes', spec)


@pytest.fixture
def no_old_loggers():
    """A logger of an earlier run writes to a stream that its test has closed."""
    MMLogger._instance_dict.clear()


@pytest.fixture(scope='session')
def place(tmp_path_factory):
    """A folder of odd files."""
    return write_odd_files(tmp_path_factory.mktemp('odd'))


@pytest.fixture
def refuses(no_old_loggers, place, shapes, tmp_path, capfd, monkeypatch):
    """Checks that a command line, with {place} for the folder of odd files, ends in one line that says ``words``."""

    def check(command, words):
        monkeypatch.chdir(tmp_path)
        places = dict(place=place, tmp=tmp_path, shapes=shapes, det=ROOT / DETECTOR, seg=ROOT / SEGMENTER)
        tool, *argv = (part.format(**places) for part in command)
        line = error_line(capfd, run_tool(tool, argv))
        assert re.search(words, line), line
        assert not list(tmp_path.rglob('*.pth'))

    return check

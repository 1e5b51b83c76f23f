"""tools/doctor.py on good and on broken installations."""

import subprocess
import sys

import pytest
from tiny_runs import ROOT

DOCTOR = str(ROOT / 'tools' / 'doctor.py')

# Hides modules (and their distributions) from the interpreter, then runs the doctor.
BLOCKED = """
import importlib.abc, importlib.metadata as metadata, runpy, sys
hidden, dists, wrong = {hidden!r}, {dists!r}, {wrong!r}
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in hidden:
            raise ModuleNotFoundError(f"No module named '{{name}}'", name=name)
version = metadata.version
def fake(name):
    if name in dists:
        raise metadata.PackageNotFoundError(name)
    return wrong.get(name) or version(name)
metadata.version = fake
sys.meta_path.insert(0, Blocker())
sys.argv = [{doctor!r}]
runpy.run_path({doctor!r}, run_name='__main__')
"""


def doctor(hidden=(), dists=(), wrong=None, flags=()):
    code = BLOCKED.format(hidden=tuple(hidden), dists=tuple(dists), wrong=wrong or {}, doctor=DOCTOR)
    return subprocess.run([sys.executable, *flags, '-c', code], capture_output=True, text=True, timeout=120)


def test_all_is_well():
    done = doctor()
    assert done.returncode == 0, done.stdout
    assert 'all is well' in done.stdout and 'mmcv._ext' in done.stdout and 'mmkerneldna:: configs' in done.stdout


def test_bare_python():
    """Without site-packages nothing is there, rich included; every required package gets its command."""
    done = subprocess.run([sys.executable, '-S', '-I', DOCTOR], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    for dist in ('torch', 'onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection', 'onedl-mmsegmentation'):
        assert f"'{dist}>=" in done.stdout
    assert 'WRONG  torch' in done.stdout


@pytest.mark.parametrize(
    'hidden, dists, wrong, said',
    [
        (('mmseg',), ('onedl-mmsegmentation',), {}, "pip install 'onedl-mmsegmentation"),
        (('mmcv._ext',), (), {}, "--no-build-isolation --no-deps --force-reinstall --no-cache-dir 'onedl-mmcv"),
        ((), (), {'onedl-mmdetection': '2.28.2'}, "pip install 'onedl-mmdetection"),
        (('cv2',), (), {}, 'pip install opencv-python-headless'),
    ],
    ids=['missing package', 'mmcv without ops', 'old version', 'missing OpenCV'],
)
def test_says_what_fixes_it(hidden, dists, wrong, said):
    done = doctor(hidden, dists, wrong)
    assert done.returncode == 1 and said in done.stdout, done.stdout + done.stderr
    assert 'Traceback' not in done.stderr

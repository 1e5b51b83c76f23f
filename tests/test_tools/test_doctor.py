"""tools/doctor.py on good and on broken installations."""

import importlib.abc
import inspect
import subprocess
import sys
from importlib import metadata

import pytest
from tiny_runs import ROOT, run_tool

DOCTOR = str(ROOT / 'tools' / 'doctor.py')


class Blocker(importlib.abc.MetaPathFinder):
    """Hides modules from the interpreter."""

    def __init__(self, *hidden):
        self.hidden = hidden

    def find_spec(self, name, path=None, target=None):
        if name in self.hidden:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)


def without(*hidden):
    """The doctor in a process that cannot import some modules, nor what needs them."""
    code = (
        f'import importlib.abc, runpy, sys\n{inspect.getsource(Blocker)}\nsys.meta_path.insert(0, Blocker(*{hidden!r}))\n'
        f"sys.argv = [{DOCTOR!r}]\nrunpy.run_path({DOCTOR!r}, run_name='__main__')"
    )
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)


def test_all_is_well():
    done = subprocess.run([sys.executable, DOCTOR], capture_output=True, text=True, timeout=120)
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
    'hidden, said',
    [
        ('mmcv._ext', "--no-build-isolation --no-deps --force-reinstall --no-cache-dir 'onedl-mmcv"),
        ('cv2', 'pip install opencv-python-headless'),
    ],
    ids=['mmcv without ops', 'missing OpenCV'],
)
def test_says_what_fixes_it(hidden, said):
    done = without(hidden)
    assert done.returncode == 1 and said in done.stdout, done.stdout + done.stderr
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize('dist, found', [('onedl-mmsegmentation', None), ('onedl-mmdetection', '2.28.2')])
def test_a_package_that_is_missing_or_old(dist, found, monkeypatch, capfd):
    """In this process, which has imported the rest: the doctor reads no version of it, or another one."""
    real = metadata.version

    def version(name):
        if name == dist and found is None:
            raise metadata.PackageNotFoundError(name)
        return found if name == dist else real(name)

    monkeypatch.setattr(metadata, 'version', version)
    monkeypatch.setattr(sys, 'path', [*sys.path])
    if found is None:
        monkeypatch.delitem(sys.modules, 'mmseg')
        monkeypatch.setattr(sys, 'meta_path', [Blocker('mmseg'), *sys.meta_path])
    assert run_tool('doctor.py', []) == 1
    said = capfd.readouterr()
    assert f"pip install '{dist}" in said.out and 'Traceback' not in said.err

"""What the tools decide before torch is loaded, and what --help prints."""

import os
import subprocess
import sys

import pytest
from tiny_runs import ROOT

ASK = (
    'import os, sys; sys.path.insert(0, "tools"); import _before_imports; print(os.environ.get("OMP_WAIT_POLICY"), '
    'os.environ.get("MMKERNELDNA_VERBOSE"))'
)


def ask(*argv, **chosen):
    names = ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'KMP_BLOCKTIME', 'KMP_LIBRARY', 'MMKERNELDNA_VERBOSE')
    env = {key: value for key, value in os.environ.items() if key not in names}
    done = subprocess.run(
        [sys.executable, '-c', ASK, *argv], env={**env, **chosen}, cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_threads_wait_passively_unless_the_user_chose():
    assert ask() == ['PASSIVE', 'None']
    assert ask(OMP_WAIT_POLICY='ACTIVE') == ['ACTIVE', 'None']
    assert ask(GOMP_SPINCOUNT='1000') == ['None', 'None']
    assert ask(KMP_BLOCKTIME='200') == ['None', 'None']


def test_verbose_reaches_the_imports():
    assert ask('a.py', '--verbose') == ['PASSIVE', '1']


@pytest.mark.parametrize('tool', ['train'])
def test_help_is_help_and_nothing_else(tool):
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tools' / f'{tool}.py'), '--help'], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and done.stdout.startswith('usage: ') and done.stderr == ''
    assert 'OneDL' not in done.stdout and '--verbose' in done.stdout

"""What a tool shows and what it keeps in the log."""

import logging
import sys
import warnings

import pytest
from mmengine.logging import MMLogger
from mmengine.runner import Runner

from mmkerneldna import _quiet
from mmkerneldna.launch.quiet import quiet_output


@pytest.fixture
def loggers(monkeypatch):
    """mmengine's loggers are global: none from before, none left."""
    monkeypatch.setattr(MMLogger, '_instance_dict', type(MMLogger._instance_dict)())
    monkeypatch.delenv('MMKERNELDNA_VERBOSE', raising=False)


class StubRunner:
    """Logs and prints while it is built, as mmengine's does."""

    def __init__(self, path):
        self.logger = self.build_logger(path)
        self.logger.info('config dump')
        print('printed by a package')

    def build_logger(self, path):
        return MMLogger.get_instance('stub', log_file=str(path))

    hooks, cfg = (), dict(resume=False)

    def register_hook(self, hook):
        self.hooks = (hook,)


def work(path):
    with quiet_output() as output:
        MMLogger.get_current_instance().info('before the work_dir is known')
        runner = (output.runner_class(StubRunner) if output else StubRunner)(path)
        runner.logger.warning('the stem is frozen at random weights')
        runner.logger.warning('"FileClient" will be deprecated in future')
        warnings.warn('the user can do nothing', DeprecationWarning, stacklevel=1)
        if output:
            output.watch(runner)
    return runner


def test_quiet(loggers, tmp_path, capsys):
    stdout = sys.stdout
    runner = work(tmp_path / 'run.log')
    assert capsys.readouterr().out.splitlines() == [
        '  warning: the stem is frozen at random weights',
        f'  log: {tmp_path / "run.log"}',
    ]
    log = (tmp_path / 'run.log').read_text()
    for text in ('before the work_dir', 'config dump', 'printed by a package', 'FileClient', 'the stem'):
        assert text in log
    assert sys.stdout is stdout and len(runner.hooks) == 1


def test_verbose_brings_all_back(loggers, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('MMKERNELDNA_VERBOSE', '1')
    with pytest.warns(DeprecationWarning, match='can do nothing'):
        runner = work(tmp_path / 'run.log')
    out = capsys.readouterr().out
    for text in ('before the work_dir', 'config dump', 'printed by a package', 'FileClient', 'the stem'):
        assert text in out
    assert runner.hooks == ()


def test_the_runner_keeps_its_type(loggers, tmp_path):
    with quiet_output() as output:
        assert issubclass(output.runner_class(Runner), Runner)


def test_errors_pass(loggers, tmp_path):
    stdout = sys.stdout
    with pytest.raises(ZeroDivisionError), quiet_output():
        raise ZeroDivisionError
    assert sys.stdout is stdout


def test_imports_are_quiet_but_for_what_is_not_on_the_list(monkeypatch, capsys):
    monkeypatch.delenv('MMKERNELDNA_VERBOSE', raising=False)
    with _quiet.quiet_imports():
        print('Could not import OneDL. Skipping OneDL datasets.')
        print('something else')
        handler = logging.StreamHandler(sys.stdout)
    handler.emit(logging.LogRecord('a', logging.INFO, '', 0, 'kept stream', None, None))
    assert capsys.readouterr().out == 'something else\nkept stream\n'
    monkeypatch.setenv('MMKERNELDNA_VERBOSE', '1')
    with _quiet.quiet_imports():
        print('Could not import OneDL. Skipping OneDL datasets.')
    assert capsys.readouterr().out.startswith('Could not')

"""One root of all errors, one line for each of them."""

import importlib
import inspect
import pkgutil

import pytest

import mmkerneldna
from mmkerneldna.errors import EXIT_CODE, KernelDNAError, one_line_errors

#: raised while the package is imported, before there is anything that could print a line
AT_IMPORT = {'DependencyError'}


def modules():
    for found in pkgutil.walk_packages(mmkerneldna.__path__, 'mmkerneldna.'):
        if '.mim' not in found.name and not found.name.endswith('__main__'):
            yield importlib.import_module(found.name)


def below(kind):
    return {kind}.union(*map(below, kind.__subclasses__()))


ALL = sorted(
    {
        cls
        for module in modules()
        for cls in vars(module).values()
        if inspect.isclass(cls) and issubclass(cls, Exception) and cls.__module__.startswith('mmkerneldna')
    }
    | below(KernelDNAError),
    key=lambda cls: cls.__name__,
)


@pytest.mark.parametrize('kind', [cls for cls in ALL if cls.__name__ not in AT_IMPORT], ids=lambda cls: cls.__name__)
def test_every_error_is_one_line_and_status_2(kind, capsys):
    assert issubclass(kind, KernelDNAError)
    error = kind.__new__(kind, 'layer x is 3, expected 4')
    error.args = ('layer x is 3, expected 4',)
    with pytest.raises(SystemExit) as stop, one_line_errors():
        raise error
    assert stop.value.code == EXIT_CODE == 2
    assert capsys.readouterr().err == 'error: layer x is 3, expected 4\n'


def test_the_known_ones_are_among_them():
    names = {cls.__name__ for cls in ALL}
    assert names >= {'DeployError', 'ExportError', 'SwapError', 'NoRunsError', 'DataError', 'UsageError', 'CheckpointError'}


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), one_line_errors():
        raise ZeroDivisionError


@pytest.mark.parametrize('raised', [FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError])
def test_a_path_of_another_kind_is_one_line(raised, capsys):
    with pytest.raises(SystemExit), one_line_errors():
        raise raised(2, 'not what it should be', '/a/b')
    assert capsys.readouterr().err == "error: [Errno 2] not what it should be: '/a/b'\n"

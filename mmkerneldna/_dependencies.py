"""One-line errors for a missing or wrong OpenMMLab package, before mmdet can raise a traceback of its own."""
import importlib
import sys
from importlib import metadata

# import name -> (distribution, lowest version, first version that is too new)
REQUIRED = {
    'torch': ('torch', '2.4', '3'),
    'mmengine': ('onedl-mmengine', '0.10.8', '1'),
    'mmcv': ('onedl-mmcv', '2.3.0', '3'),
    'mmdet': ('onedl-mmdetection', '3.4', '4'),
    'mmseg': ('onedl-mmsegmentation', '1.3', '2'),
}


class DependencyError(ImportError):
    """A package mmkerneldna needs is missing, too old or too new."""


def _release(version: str) -> tuple:
    digits = version.split('+')[0].split('.')
    return tuple(int(''.join(c for c in part if c.isdigit()) or 0) for part in digits)


def check_dependency(module: str) -> str:
    """Return the installed version of ``module``.

    Raises:
        DependencyError: one line that names the package, what was found, what is needed and the command that
            installs it.
    """
    dist, low, high = REQUIRED[module]
    mend = f"run 'python tools/doctor.py' for the full list, or 'pip install --no-build-isolation \"{dist}>={low},<{high}\"'"
    try:
        found = metadata.version(dist)
    except metadata.PackageNotFoundError:
        other = _other_distribution(module, dist)
        raise DependencyError(f'mmkerneldna needs {dist} (import name {module}), {other}: {mend}') from None
    if not _release(low) <= _release(found) < _release(high):
        raise DependencyError(f'mmkerneldna needs {dist}>={low},<{high}, found {found}: {mend}')
    return found


def _other_distribution(module: str, dist: str) -> str:
    names = metadata.packages_distributions().get(module, [])
    return f'found {", ".join(sorted(set(names)))} instead' if names else 'which is not installed'


def check_dependencies() -> None:
    """Check every required package, then that they import.

    Raises:
        DependencyError: for the first one that is wrong.
    """
    for module in REQUIRED:
        check_dependency(module)
    for module in REQUIRED:
        if module not in sys.modules:
            _import(module)


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except Exception as error:  # mmdet asserts on versions, extensions raise OSError
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DependencyError(f"mmkerneldna cannot import {module} ({type(error).__name__}: {reason}): "
                              "run 'python tools/doctor.py'") from error

"""One-line errors for a missing or wrong OpenMMLab package, before mmdet can raise a traceback of its own.

What is needed stands in the package's own metadata. ``tools/doctor.py`` loads this file alone, on a Python that may
have nothing installed: then the metadata are read from the checkout, and ``packaging`` may lack.
"""

import importlib
import re
import sys
from importlib import metadata
from pathlib import Path

#: import name -> distribution, of the packages that are checked
MODULES = {
    'torch': 'torch',
    'mmengine': 'onedl-mmengine',
    'mmcv': 'onedl-mmcv',
    'mmdet': 'onedl-mmdetection',
    'mmseg': 'onedl-mmsegmentation',
}


class DependencyError(ImportError):
    """A package mmkerneldna needs is missing, too old or too new."""


def requirements() -> dict[str, str]:
    """Distribution -> what mmkerneldna asks of it, e.g. ``{'torch': 'torch<3,>=2.4', ...}``."""
    try:
        lines = metadata.requires('mmkerneldna') or []
    except metadata.PackageNotFoundError:
        text = (Path(__file__).resolve().parent.parent / 'pyproject.toml').read_text()
        lists = re.findall(r'^dependencies = \[(.*?)^\]', text, re.DOTALL | re.MULTILINE)
        lines = re.findall(r'"(.*?)"', lists[0])
    return {re.split(r'[^\w.-]', line, maxsplit=1)[0]: line for line in lines if 'extra ==' not in line}


def check_dependency(module: str) -> str:
    """Return the installed version of ``module``.

    Raises:
        DependencyError: one line that names the package, what was found, what is needed and the command that
            installs it.
    """
    dist = MODULES[module]
    wanted = requirements()[dist]
    fix = f"run 'python tools/doctor.py' for the full list, or 'pip install --no-build-isolation \"{wanted}\"'"
    try:
        found = metadata.version(dist)
    except metadata.PackageNotFoundError:
        other = _other_distribution(module)
        raise DependencyError(f'mmkerneldna needs {dist} (import name {module}), {other}: {fix}') from None
    if not _fits(found, wanted):
        raise DependencyError(f'mmkerneldna needs {wanted}, found {found}: {fix}')
    return found


def _fits(version: str, wanted: str) -> bool:
    try:
        from packaging.requirements import Requirement
    except ImportError:
        raise DependencyError("mmkerneldna needs packaging, which is not installed: run 'pip install packaging'") from None
    return Requirement(wanted).specifier.contains(version, prereleases=True)


def _other_distribution(module: str) -> str:
    names = metadata.packages_distributions().get(module, [])
    return f'found {", ".join(sorted(set(names)))} instead' if names else 'which is not installed'


def check_dependencies() -> None:
    """Check every required package, then that they import.

    Raises:
        DependencyError: for the first one that is wrong.
    """
    for module in MODULES:
        check_dependency(module)
    for module in MODULES:
        if module not in sys.modules:
            _import(module)


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except Exception as error:  # mmdet asserts on versions, extensions raise OSError
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DependencyError(
            f"mmkerneldna cannot import {module} ({type(error).__name__}: {reason}): run 'python tools/doctor.py'"
        ) from error

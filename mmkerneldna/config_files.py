"""Read a config from a file or an installed package, or say in a line why not."""

import difflib
import os
from pathlib import Path

from mmengine.config import Config
from mmengine.hub import get_config

from .errors import UsageError, one_line


def read_config(name: str) -> Config:
    """Read ``folder/name.py``, or ``package::folder/name.py`` of an installed package.

    Raises:
        UsageError: there is no such file, it can't be parsed, or needs a package that is missing.
    """
    if '::' not in name and not os.path.isfile(name):
        fault = 'is a folder, name a file in it' if os.path.isdir(name) else f'does not exist{_near_files(name)}'
        raise UsageError(f'config {name} {fault}')
    try:
        return get_config(name) if '::' in name else Config.fromfile(name)
    except Exception as error:  # a config is the user's own program: it can raise anything
        raise UsageError(f'config {name} cannot be read: {one_line(error)}') from error


def _near_files(name: str) -> str:
    folder = Path(name).parent
    names = [path.name for path in folder.glob('*.py')] if folder.is_dir() else []
    near = difflib.get_close_matches(Path(name).name, names, n=3, cutoff=0.4)
    return f'; nearest in {folder}: {", ".join(near)}' if near else ''

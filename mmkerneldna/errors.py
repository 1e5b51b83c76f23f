"""The root of every error that a user may see, and the one place that turns one into a line and an exit status.

A tool wraps its work in :func:`one_line_errors`. What a user can fix is printed as one ``error:`` line; a bug keeps its
traceback.
"""

import difflib
import os
import re
import sys
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

from mmengine.registry import Registry, root

EXIT_CODE = 2


class KernelDNAError(Exception):
    """Base of all errors of this package whose message is written for the user: what was found, expected, and to do."""


class UsageError(KernelDNAError, ValueError):
    """A flag, a path or a config that can't be used."""


class DataError(KernelDNAError, ValueError):
    """Something is wrong with the data that a config points to."""


class CheckpointError(KernelDNAError, ValueError):
    """A checkpoint that can't be used; the message is one line, but for the lists of keys."""


def explain(error: BaseException) -> str | None:
    """The line for an error that the user can fix, or None for any other (a bug deserves its traceback)."""
    if isinstance(error, KernelDNAError):
        return str(error)
    text = str(error)
    for pattern, kinds, hint in _HINTS:
        found = re.search(pattern, text)
        if found and isinstance(error, kinds):
            return hint(found, text)
    return None


def one_line(error: BaseException) -> str:
    """The type and the text of any error."""
    return f'{type(error).__name__}: {" ".join(str(error).split())}'


def _unknown_type(found: re.Match, text: str) -> str:
    return unknown_type(found.group(1), found.group(2))


def unknown_type(name: str, registry: str) -> str:
    """The line for a ``type`` that is registered nowhere."""
    near = nearest_types(name, registry)
    hint = f'; nearest: {", ".join(near)}' if near else ''
    return f"type='{name}' is not registered as a {registry}{hint}"


def nearest_types(name: str, registry: str, count: int = 3) -> list[str]:
    """Registered names closest to ``name`` in the registry called ``registry``, its parents and children included."""
    known = set()
    for root_registry in vars(root).values():
        if isinstance(root_registry, Registry) and root_registry.name == registry:
            known |= _names(root_registry)
    wanted = name.rpartition('.')[2]
    by_lower = {candidate.lower(): candidate for candidate in sorted(known)}
    return [by_lower[low] for low in difflib.get_close_matches(wanted.lower(), by_lower, n=count, cutoff=0.5)]


def _names(registry: Registry) -> set:
    return set(registry.module_dict).union(*(_names(child) for child in registry.children.values()))


def _same_line(found: re.Match, text: str) -> str:
    return ' '.join(text.split())


_HINTS: list[tuple[str, Any, Callable[[re.Match, str], str | None]]] = [
    (r"""([^\s'"]+) is not in the (?:\w+::)?([\w ]+?) registry""", KeyError, _unknown_type),
    (r'__init__\(\) (?:got an unexpected keyword|missing \d+ required)|got multiple values for', TypeError, _same_line),
    (r'.+', (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError), _same_line),
]


@contextmanager
def one_line_errors():
    """Print what the user can fix as one ``error:`` line and exit with 2; let anything else through."""
    try:
        yield
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        if os.environ.get('RANK', '0') == '0':
            print(f'error: {message}', file=sys.stderr)
        raise SystemExit(EXIT_CODE) from None

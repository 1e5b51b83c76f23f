"""What other packages say and the user can do nothing about: the one list, and silence while they are imported.

``MMKERNELDNA_VERBOSE=1`` (``--verbose`` of a tool) brings all of it back.
"""

import contextlib
import io
import os
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

PRINTS = re.compile(r'Could not import OneDL')
WARNINGS: list[dict[str, Any]] = [
    dict(category=DeprecationWarning),
    dict(category=PendingDeprecationWarning),
    dict(category=FutureWarning),
    dict(message=r'.*avg_non_ignore'),
    dict(message=r'.*torch\.meshgrid'),
    dict(message=r'.*pkg_resources'),
    dict(message=r'.*lr_scheduler\.step\(\)'),
    dict(message=r'.*pin_memory'),
    dict(message=r'Failed to add .*VisBackend'),
    dict(message=r'.*is out of bounds, the drawn'),
    dict(message=r'The draw is False'),  # mmseg's visualisation hook, which nobody asked to draw
    dict(message=r'.*instance named of visualizer has been created'),  # mmengine, at the second Runner of a process
]
LOGS = re.compile(r'will be deprecated|is the alias of|The prefix is not set in metric class|Failed to search registry')


def is_verbose() -> bool:
    """Whether the user asked to see everything."""
    return os.environ.get('MMKERNELDNA_VERBOSE', '0') not in ('', '0')


def hide_warnings() -> None:
    """Add the list to the filters of :mod:`warnings`; other warnings stay."""
    for settings in WARNINGS:
        warnings.filterwarnings('ignore', **settings)


class _WithoutPrints(io.TextIOBase):
    """Passes everything on but the prints of the list. Who keeps this stream can go on writing to it."""

    def __init__(self, stream) -> None:
        self.stream, self.dropped = stream, False

    def write(self, text: str) -> int:
        """Drop a print of the list together with the line end that follows it."""
        if PRINTS.match(text) or (self.dropped and text == '\n'):
            self.dropped = text != '\n'
        else:
            self.dropped = False
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Of the stream behind."""
        self.stream.flush()


@contextlib.contextmanager
def quiet_warnings() -> Iterator[None]:
    """Without the warnings of the list."""
    with warnings.catch_warnings():
        if not is_verbose():
            hide_warnings()
        yield


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Imports without the prints and warnings of the list."""
    if is_verbose():
        yield
        return
    with quiet_warnings(), contextlib.redirect_stdout(_WithoutPrints(sys.stdout)):
        yield

"""A tool's output for people: a line about the run and its scores; all the rest goes to the log file in the work_dir.

What other packages print, mmengine's log and Python's warnings are kept there. Warnings and errors of the log are shown too,
unless the user can do nothing about them (:mod:`mmkerneldna._quiet` has the list).
"""

import contextlib
import io
import logging
import sys
from collections.abc import Iterator
from logging.handlers import MemoryHandler

from mmengine.dist import get_rank
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from rich.console import Console

from .._quiet import LOGS, is_verbose, quiet_warnings
from ..hooks.progress_hook import ProgressHook
from ..runs.progress import make_display


class QuietOutput:
    """Where the output of a quiet tool goes.

    Args:
        console: for people; bound to the real stdout before that is redirected.
    """

    def __init__(self, console: Console) -> None:
        self.display = make_display(console)
        # What is logged before the work_dir is known waits for the log file.
        self.early = MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1)
        self.early.setLevel(logging.INFO)
        self.taken: list[tuple[MMLogger, list]] = []

    def take_over(self, logger: MMLogger) -> None:
        """Keep a logger's file, and let no more than warnings through to the person."""
        files = [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)]
        self.taken.append((logger, files or list(logger.handlers)))
        shown = _ToDisplay(self.display)
        shown.setLevel(logging.WARNING if get_rank() == 0 else logging.ERROR)
        logger.handlers[:] = [*files, shown] if files else [self.early, shown]
        if files:
            self.early.setTarget(files[0])
            self.early.flush()

    def give_back(self) -> None:
        """Nothing is shown any more; files stay open."""
        for logger, handlers in self.taken:
            logger.handlers[:] = handlers
        self.display.close()

    def watch(self, runner: Runner) -> None:
        """Show where the run is."""
        if get_rank() == 0:
            self.display.say(f'  log: {runner.logger.log_file}')
            if runner.cfg.get('resume'):
                self.display.say(f'  goes on from {runner.cfg.load_from}')
            runner.register_hook(ProgressHook(self.display))

    def runner_class(self, kind: type[Runner]) -> type[Runner]:
        """The Runner with its logger taken over as soon as there is one: it logs while it is built."""
        take_over = self.take_over

        # mypy knows no base that is a variable
        class QuietRunner(kind):  # type: ignore[valid-type, misc]
            def build_logger(self, *args, **kwargs):
                logger = super().build_logger(*args, **kwargs)
                take_over(logger)
                return logger

        return QuietRunner


class _ToDisplay(logging.Handler):
    """Log records as lines above the live one."""

    def __init__(self, display) -> None:
        super().__init__()
        self.display = display

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if not LOGS.search(message):
            self.display.say(f'  {record.levelname.lower()}: {message}', style='yellow')


class _PrintsToLog(io.TextIOBase):
    """Stands in for stdout: whole lines go to the log."""

    def __init__(self) -> None:
        self.rest = ''

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split('\n')
        for line in filter(str.strip, lines):
            MMLogger.get_current_instance().info(line)
        return len(text)


@contextlib.contextmanager
def quiet_output() -> Iterator[QuietOutput | None]:
    """Quiet while a tool works; None where the user wants mmengine's usual output (``--verbose``)."""
    if is_verbose():
        yield None
        return
    output = QuietOutput(Console(file=sys.stdout))
    output.take_over(MMLogger.get_instance('mmengine'))
    try:
        with quiet_warnings(), contextlib.redirect_stdout(_PrintsToLog()):
            yield output
    finally:
        output.give_back()

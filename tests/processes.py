"""Processes of a test, forked off one that has imported the package: importing it anew takes seconds each time.

That one starts with the first test that needs it and keeps the environment variables of that moment. It has run nothing, so it
has no threads and no CUDA context that a fork would lose.
"""

import multiprocessing


def run_forked(function, *args):
    """Run a function that returns an exit status in a process of its own; that status, or less than 0 if a signal ended it."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['mmkerneldna'])
    process = context.Process(target=_exit_with, args=(function, args))
    process.start()
    process.join(timeout=600)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f'{function.__name__}{args} did not end')
    return process.exitcode


def _exit_with(function, args):
    raise SystemExit(function(*args))

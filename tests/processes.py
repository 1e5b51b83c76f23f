"""Processes of a test, forked off one that has imported the package: importing it anew takes seconds each time.

That one starts with the first test that needs it and keeps the environment variables of that moment. It has run nothing, so it
has no threads and no CUDA context that a fork would lose.
"""

import multiprocessing

import torch.multiprocessing as mp


def _context():
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['mmkerneldna'])
    return context


def spawn(function, args, nprocs):
    """As ``torch.multiprocessing.spawn``: ``function(rank, *args)`` in ``nprocs`` processes; an error of one is raised here."""
    _context()
    mp.start_processes(function, args, nprocs, start_method='forkserver')


def run_forked(function, *args):
    """Run a function that returns an exit status in a process of its own; that status, or less than 0 if a signal ended it."""
    process = _context().Process(target=_exit_with, args=(function, args))
    process.start()
    process.join()
    return process.exitcode


def _exit_with(function, args):
    raise SystemExit(function(*args))

"""Every tool imports this first: what has to be decided before torch is loaded.

OpenMP's threads wait passively. Spinning threads of a process that shares its cores with another one keep the work away from
them. Who has chosen a policy keeps it. ``--verbose`` anywhere on the command line holds for the imports too, and for the tools
that this one starts.
"""

import os
import sys

WAIT_SETTINGS = ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'KMP_BLOCKTIME', 'KMP_LIBRARY')


def wait_passively() -> None:
    """Unless the user chose otherwise by any of OpenMP's own settings."""
    if not any(name in os.environ for name in WAIT_SETTINGS):
        os.environ['OMP_WAIT_POLICY'] = 'PASSIVE'


wait_passively()
if '--verbose' in sys.argv:
    os.environ['MMKERNELDNA_VERBOSE'] = '1'

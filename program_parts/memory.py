"""A process's memory, which holds keys: it is left in no core dump."""

import contextlib
import ctypes
import resource
import sys
from typing import Final

_PR_SET_DUMPABLE: Final = 4  # of prctl(2)


def forbid_core_dumps() -> None:
    """Keep this process's memory out of core dumps, and on Linux out of the hands of the user's other processes.

    A handler of core dumps, such as systemd-coredump, gets none either. Programs that this process starts are not
    concerned. `python -X dev` leaves everything as it is, for debuggers.
    """
    if sys.flags.dev_mode:
        return
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # a C library without prctl
            ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    else:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))

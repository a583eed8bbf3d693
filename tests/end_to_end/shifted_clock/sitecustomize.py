"""A clock that is off: for the tests that put this folder on PYTHONPATH of a program.

Python imports a module of this name by itself before a program begins. SHIFT: seconds that the program's clock is ahead.
SHIFT_IN: the module that alone sees that clock, where the rest of the program is to see the right one.
"""

import os
import sys
import time

_SHIFT, _MODULE = float(os.environ["SHIFT"]), os.environ.get("SHIFT_IN")
_right = time.time


def _shifted() -> float:
    asked_by = sys._getframe(1).f_globals.get("__name__")
    return _right() + (_SHIFT if _MODULE in (None, asked_by) else 0)


time.time = _shifted

"""The check of numeric settings: a wrong one is an error at construction, which names the setting."""

import math
import sys

from headless_passkey.errors import UsageError


def check_bounds(
    settings: object, *names: str, lowest: float, highest: float = math.inf, whole: bool = True
) -> None:
    """Refuse settings that are not finite numbers from `lowest` to `highest`, with `UsageError`.

    names: of attributes of `settings`. whole: they are whole numbers. A lowest of 0 is itself allowed for those only.
    """
    for name in names:
        value = getattr(settings, name)
        kinds = int if whole else (int, float)
        # compared and not given to math.isfinite, which raises OverflowError for whole numbers above this
        top = min(highest, sys.float_info.max)
        fits = isinstance(value, kinds) and not isinstance(value, bool) and lowest <= value <= top
        if not fits or (not whole and value == 0):
            kind = "a whole number" if whole else "a number"
            span = f"of {lowest:g} or more" if highest == math.inf else f"from {lowest:g} to {highest:g}"
            above = "above 0" if not whole and lowest == 0 else span
            raise UsageError(f"{name}: expected {kind} {above}, got {_shown(value)}")


def _shown(value: object) -> str:
    try:
        return f"{value!r:.40}"
    except ValueError:  # of more digits than Python converts
        return "a longer one"

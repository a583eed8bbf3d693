"""The check of numeric settings: a wrong one is an error at construction, with the setting's name."""

import math

from headless_passkey.errors import UsageError


def check_bounds(
    settings: object, *names: str, lowest: float, highest: float = math.inf, whole: bool = True
) -> None:
    """Refuse (`UsageError`) what is no number of `lowest` to `highest`. whole: or no whole one.

    names: of attributes of `settings`. A lowest of 0 is itself allowed for whole numbers only.
    """
    for name in names:
        value = getattr(settings, name)
        kinds = int if whole else (int, float)
        fits = isinstance(value, kinds) and not isinstance(value, bool) and lowest <= value <= highest
        if not fits or not math.isfinite(value) or (not whole and value == 0):
            kind = "a whole number" if whole else "a number"
            span = f"of {lowest:g} or more" if highest == math.inf else f"from {lowest:g} to {highest:g}"
            above = "above 0" if not whole and lowest == 0 else span
            raise UsageError(f"{name}: expected {kind} {above}, got {value!r:.40}")

"""The header ``Retry-After`` of push services (RFC 9110 §10.2.3): seconds, or a date."""

from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

LONGEST: Final = 86_400.0  # seconds; a service that asks for more gets this


def retry_after(text: str | None, now: float) -> float | None:
    """The seconds to wait, at most a day; None without the header, and for one that is neither seconds nor a date.

    now: Unix seconds, which a date is compared with.
    """
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:12]), LONGEST)
    try:
        date = parsedate_to_datetime(text)
        seconds = date.replace(tzinfo=date.tzinfo or UTC).timestamp() - now
    except (ValueError, OverflowError, IndexError):
        return None
    return min(max(seconds, 0.0), LONGEST)

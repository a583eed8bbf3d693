"""Where a database in PostgreSQL is."""

from typing import Final
from urllib.parse import parse_qsl, urlsplit

_SCHEMES: Final = ("postgresql", "postgres")
_EXPECTED: Final = "expected postgresql://[USER@]HOST[:PORT]/DATABASE"


def is_uri(text: str) -> bool:
    """Whether a text is meant to be a database, and not a file."""
    return text.startswith(tuple(f"{scheme}://" for scheme in _SCHEMES))


def check_uri(uri: str) -> None:
    """Check libpq's connection URI of a database; `ValueError`, which repeats nothing of it.

    A password in it is refused: it is no secret in an argument. libpq reads it from ``PGPASSFILE``, ``PGPASSWORD`` or a
    service file.
    """
    try:
        parts = urlsplit(uri)
        has_password = parts.password is not None
    except ValueError:
        raise ValueError(_EXPECTED) from None
    names = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    if has_password or "password" in names or "sslpassword" in names:
        raise ValueError("give the password in PGPASSFILE or PGPASSWORD, not in the URL")
    if parts.scheme not in _SCHEMES or not parts.path.strip("/"):
        raise ValueError(_EXPECTED)

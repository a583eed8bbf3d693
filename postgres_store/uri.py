"""Where a database in PostgreSQL is."""

import re
from typing import Final
from urllib.parse import parse_qsl

_SCHEMES: Final = ("postgresql", "postgres")
# as RFC 3986 divides a URI; libpq takes several hosts, of which `urlsplit` of newer Pythons (3.14.10) takes none with an IPv6 address
_URI: Final = re.compile(
    r"(?P<scheme>[^:/?#]+)://(?:(?P<user>[^/?#]*)@)?(?:[^][/?#]|\[[^][/?#]*\])*(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?",
    re.ASCII,
)
_EXPECTED: Final = "expected postgresql://[USER@]HOST[:PORT]/DATABASE"


def is_uri(text: str) -> bool:
    """Whether a text is meant to be a database, and not a file."""
    return text.startswith(tuple(f"{scheme}://" for scheme in _SCHEMES))


def check_uri(uri: str) -> None:
    """Check libpq's connection URI of a database; `ValueError`, which repeats nothing of it.

    A password in it is refused: it is no secret in an argument. libpq reads it from ``PGPASSFILE``, ``PGPASSWORD`` or a
    service file.
    """
    parts = _URI.fullmatch(uri)
    if parts is None:
        raise ValueError(_EXPECTED)
    names = [name for name, _ in parse_qsl(parts["query"] or "", keep_blank_values=True)]
    if ":" in (parts["user"] or "") or "password" in names or "sslpassword" in names:
        raise ValueError("give the password in PGPASSFILE or PGPASSWORD, not in the URL")
    if parts["scheme"].lower() not in _SCHEMES or not (parts["path"] or "").strip("/"):
        raise ValueError(_EXPECTED)

"""Where a relay's store is: a file, or a database in PostgreSQL."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import parse_qsl, urlsplit

from headless_passkey.errors import UsageError

_SCHEMES = ("postgresql", "postgres")


@dataclass(frozen=True, slots=True)
class PostgresUri:
    """A database in PostgreSQL, by libpq's connection URI; without a password, which is no secret in an argument.

    libpq reads the password from ``PGPASSFILE``, ``PGPASSWORD`` or a service file.
    """

    uri: str

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.uri)
            has_password = parts.password is not None
        except ValueError:
            raise UsageError("store: expected postgresql://[USER@]HOST[:PORT]/DATABASE") from None
        names = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
        if has_password or "password" in names or "sslpassword" in names:
            raise UsageError("store: give the password in PGPASSFILE or PGPASSWORD, not in the URL")
        if parts.scheme not in _SCHEMES or not parts.path.strip("/"):
            raise UsageError("store: expected postgresql://[USER@]HOST[:PORT]/DATABASE")

    def __str__(self) -> str:
        return self.uri


StorePlace: TypeAlias = Path | PostgresUri


def store_place(text: str) -> StorePlace:
    """Read a place: a path, or a URL of PostgreSQL."""
    return PostgresUri(text) if text.startswith(tuple(f"{scheme}://" for scheme in _SCHEMES)) else Path(text)

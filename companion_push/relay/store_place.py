"""Where a relay's store is: a file, or a database in PostgreSQL."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from headless_passkey.errors import UsageError
from postgres_store.uri import check_uri, is_uri


@dataclass(frozen=True, slots=True)
class PostgresUri:
    """A database in PostgreSQL, by libpq's connection URI; without a password, which is no secret in an argument.

    libpq reads the password from ``PGPASSFILE``, ``PGPASSWORD`` or a service file.
    """

    uri: str
    direct: str | None = None  # of the server itself, where a pooler in transaction mode is at `uri`

    def __post_init__(self) -> None:
        try:
            check_uri(self.uri)
            if self.direct is not None:
                check_uri(self.direct)
        except ValueError as error:
            raise UsageError(f"store: {error}") from None

    def __str__(self) -> str:
        return self.uri


StorePlace: TypeAlias = Path | PostgresUri


def store_place(text: str) -> StorePlace:
    """Read a place: a path, or a URL of PostgreSQL."""
    return PostgresUri(text) if is_uri(text) else Path(text)

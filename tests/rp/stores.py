"""Where the stores of the relying party's tests are: files, and databases of a private PostgreSQL."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import psycopg

from relying_party.place import PostgresUri, StorePlace
from relying_party.store.postgres import PostgresStore
from relying_party.store.sqlite import SqliteStore
from tests.relay.stores import ON_POSTGRES, PostgresServer, postgres

ENGINES: Final = ("sqlite", "postgresql")


@dataclass(frozen=True)
class Engine:
    """A place of which any number of processes may have a store open."""

    place: StorePlace

    @property
    def file(self) -> Path:
        assert isinstance(self.place, Path)
        return self.place

    def store(self) -> SqliteStore | PostgresStore:
        return PostgresStore(self.place) if isinstance(self.place, PostgresUri) else SqliteStore(self.place)


def engine(kind: str, folder: Path) -> Engine:
    """A place of its own for a test."""
    return Engine(new_database() if kind == "postgresql" else folder / "store")


def place_of(path: Path) -> StorePlace:
    """Where the store of a test is that knows no engine: the file, or with RELAY_TEST_STORE=postgresql a database."""
    return new_database() if ON_POSTGRES else path


def new_database(server: PostgresServer | None = None, *, empty: bool = False) -> PostgresUri:
    """A new store, or a database without any tables, in the server of this process, or in another one. The test is left out where PostgreSQL is not installed."""
    server = server or postgres()
    made = _made(server)
    made.append(f"party{len(made)}")
    server.do("postgres", f"CREATE DATABASE {made[-1]} TEMPLATE {'template0' if empty else made[0]}")
    return uri(server, made[-1])


def uri(server: PostgresServer, database: str) -> PostgresUri:
    return PostgresUri(server.url(database).uri)


def query(place: PostgresUri, statement: str) -> list[tuple[Any, ...]]:
    """What another program reads, or does."""
    with psycopg.connect(place.uri, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


@cache
def _made(server: PostgresServer) -> list[str]:
    """The databases that a server was given here; the first one is copied for the others."""
    server.do("postgres", "CREATE DATABASE party")
    store = PostgresStore(uri(server, "party"))
    store._open()
    store.database.close()
    return ["party"]

"""A transaction on an open store, as the modules that read and write it see one.

Their statements are SQL that SQLite and PostgreSQL both take, with ``?`` for each value.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol


class Rows(Protocol):
    """What a statement has found or changed."""

    @property
    def rowcount(self) -> int: ...

    def fetchone(self) -> Any: ...

    def fetchall(self) -> list[Any]: ...

    def __iter__(self) -> Iterator[Any]: ...


class Transaction(Protocol):
    """A transaction on an open store."""

    def execute(self, statement: str, values: Sequence[Any] = (), /) -> Rows: ...

    def executemany(self, statement: str, values: Iterable[Sequence[Any]], /) -> object: ...


def ask(db: Transaction, statement: str, values: Sequence[Any] = ()) -> Callable[[], list[Any]]:
    """Ask for rows that are read a little later, before anything is written that changes them.

    A server is asked in the round trip of the rows that are read next, whichever these are; a file when they are read.
    """
    if isinstance(db, sqlite3.Connection):
        return lambda: db.execute(statement, values).fetchall()
    return db.execute(statement, values).fetchall

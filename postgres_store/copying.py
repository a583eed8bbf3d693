"""What commands do with a whole store: count its rows, look at what its server would lose, say what brings it to the newest schema, and
copy it from one engine into another.
"""

import sqlite3
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

_DURABLE: Final = ("fsync", "full_page_writes", "synchronous_commit")  # settings of PostgreSQL
_PORTION: Final = 500  # rows that are in memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The steps of the schema that a store lacks."""

    version: int  # of the store: the number of the last step that was made, 0 of an empty one
    steps: tuple[tuple[str, ...], ...]  # the statements of each, as its engine takes them

    @property
    def newest(self) -> int:
        return self.version + len(self.steps)

    def lines(self) -> Iterator[str]:
        """The statements for people, as SQL that can be run: each step begins with a comment, its number."""
        for number, step in enumerate(self.steps, self.version + 1):
            yield f"-- step {number}"
            for statement in step:
                yield f"{textwrap.dedent(statement).strip().removesuffix(';')};"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What a check of a store has found."""

    engine: str  # with its version
    counts: dict[str, int]  # rows, by table
    warnings: tuple[str, ...]


def counted(db: Any, tables: Iterable[str]) -> dict[str, int]:
    """Count the rows of each table of an open transaction."""
    _take_time(db)
    return {table: int(_first(db.execute(f"SELECT count(*) FROM {table}"))) for table in tables}  # noqa: S608  a name of ours


def engine_of(db: Any) -> tuple[str, tuple[str, ...]]:
    """The engine with its version, and a warning for each setting with which it may lose what it has acknowledged."""
    if isinstance(db, sqlite3.Connection):
        return f"SQLite {sqlite3.sqlite_version}", ()
    settings = {name: _first(db.execute(f"SHOW {name}")) for name in ("server_version", *_DURABLE)}
    warnings = tuple(
        f"{name} is off: the server may lose what it has acknowledged when it stops without notice"
        for name in _DURABLE
        if settings[name] == "off"
    )
    return f"PostgreSQL {settings['server_version']}", warnings


def damage_of(db: Any) -> str | None:
    """What SQLite says of a damaged file; None of a good one, and of a database, which looks after itself."""
    said = _first(db.execute("PRAGMA quick_check(1)")) if isinstance(db, sqlite3.Connection) else "ok"
    return None if said == "ok" else str(said)


def copied(
    source: Any,
    target: Any,
    tables: Sequence[str],
    *,
    numbered: Mapping[str, str],
    not_empty: Callable[[], Exception],
) -> dict[str, int]:
    """Copy all rows of one open transaction into another one, of the same schema; returns how many by table.

    tables: those that others refer to come first. numbered: columns that the database counts, by table. not_empty: is raised
    where the target has rows.
    """
    _take_time(source)
    _take_time(target)
    for table in tables:
        if target.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() is not None:  # noqa: S608  a name of ours
            raise not_empty()
    counts = {table: _copied_table(source, target, table) for table in tables}
    if not isinstance(target, sqlite3.Connection):  # numbers go on after those that were copied
        for table, column in numbered.items():
            target.execute(
                f"SELECT setval(pg_get_serial_sequence('{table}', '{column}'),"  # noqa: S608  names of ours
                f" coalesce(max({column}), 0) + 1, false) FROM {table}"
            )
    return counts


def _copied_table(source: Any, target: Any, table: str) -> int:
    rows = iter(source.execute(f"SELECT * FROM {table}"))  # noqa: S608  a name of ours
    count = 0
    while portion := list(islice(rows, _PORTION)):
        values = ", ".join("?" * len(portion[0]))
        target.executemany(f"INSERT INTO {table} VALUES ({values})", map(_values, portion))  # noqa: S608  as above
        count += len(portion)
    return count


def _values(row: Any) -> tuple[Any, ...]:
    """The values of a row, whatever kind the program reads."""
    return tuple(row.values()) if isinstance(row, Mapping) else tuple(row)


def _first(rows: Any) -> Any:
    return _values(rows.fetchone())[0]


def _take_time(db: Any) -> None:
    if not isinstance(db, sqlite3.Connection):
        db.take_time()

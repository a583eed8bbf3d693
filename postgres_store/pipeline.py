"""Statements that are sent in one round trip (libpq's pipeline mode).

Psycopg has a pipeline mode too, which costs more than the round trips that it spares here.
"""

import re
import select
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import psycopg
from psycopg import errors
from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus, Format

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn, PGresult

_LOST: Final = "the connection is lost"
_INFERRED: Final = 0  # in place of the object id of a type
_FLOAT8: Final = 701
MOST_PREPARED: Final = 256  # statements of a connection, each of which the server keeps in its memory


@dataclass(frozen=True, slots=True)
class Told:
    """A statement, with ``?`` for values: texts, bytes, numbers, or None."""

    statement: str
    values: Sequence[Any] = ()


Key: TypeAlias = tuple[str, tuple[int, ...]]  # a statement, and the types of its values


class Prepared:
    """The statements that one connection has prepared, so that its server parses and plans each of them once."""

    def __init__(self) -> None:
        self._names: dict[Key, bytes] = {}

    def name_of(self, key: Key) -> bytes | None:
        """The name of a statement that is prepared."""
        return self._names.get(key)

    def next_name(self, more: int) -> bytes | None:
        """A name for one more, `more` of which are on their way; None when there are enough."""
        number = len(self._names) + more
        return b"s%d" % number if number < MOST_PREPARED else None

    def add(self, key: Key, name: bytes) -> None:
        self._names[key] = name


def tell(
    wire: "PGconn", statements: Sequence[Told], *, encoding: str, prepared: Prepared | None = None
) -> "list[PGresult]":
    """Execute statements in order; none after one that fails. Returns the result of each, or raises the error of that one.

    wire: of a connection. It cannot be used any more when anything else is raised. prepared: of this connection; None where the
    server may be another one the next time, as behind a pooler.
    """
    new: dict[Key, bytes] = {}
    sent: list[Key | None] = []  # what is prepared, where the result will be of that
    wire.enter_pipeline_mode()
    for each in statements:
        values = [_sent(value, encoding) for value in each.values]
        texts, forms = [value for value, _ in values], [form for _, form in values]
        types = [_FLOAT8 if isinstance(value, float) else _INFERRED for value in each.values]
        command, name = _with_numbers(each.statement).encode(encoding), None
        if prepared is not None:
            key = each.statement, tuple(types)
            name = prepared.name_of(key) or new.get(key)
            if name is None and (name := prepared.next_name(len(new))) is not None:
                new[key] = name
                wire.send_prepare(name, command, types)
                sent.append(key)
        if name is None:
            wire.send_query_params(command, texts, types, forms, Format.BINARY)
        else:
            wire.send_query_prepared(name, texts, forms, Format.BINARY)
        sent.append(None)
    wire.pipeline_sync()
    results = _results(wire)
    wire.exit_pipeline_mode()
    found: list[PGresult] = []
    for key_or_none, result in zip(sent, results, strict=True):
        if result.status == ExecStatus.FATAL_ERROR:
            raise _error(result, encoding)
        if key_or_none is None:
            found.append(result)
        elif prepared is not None:
            prepared.add(key_or_none, new[key_or_none])
    return found


def _results(wire: "PGconn") -> "list[PGresult]":
    """Wait until the server has done what was sent; returns what it says of each statement."""
    results: list[PGresult] = []
    waiting = select.poll()
    while True:
        more = select.POLLOUT if wire.flush() else 0
        while not wire.is_busy():
            result = wire.get_result()
            if result is None:  # between the results of two statements
                if wire.status == ConnStatus.BAD:
                    raise psycopg.OperationalError(_LOST)
            elif result.status == ExecStatus.PIPELINE_SYNC:
                return results
            else:
                results.append(result)
        waiting.register(wire.socket, select.POLLIN | more)
        waiting.poll()
        wire.consume_input()


def _error(result: "PGresult", encoding: str) -> psycopg.Error:
    state, message = (
        (result.error_field(field) or b"").decode(encoding, errors="replace")
        for field in (DiagnosticField.SQLSTATE, DiagnosticField.MESSAGE_PRIMARY)
    )
    try:
        return errors.lookup(state)(message)
    except KeyError:
        return psycopg.DatabaseError(message)


def _sent(value: Any, encoding: str) -> tuple[bytes | None, Format]:
    """A value as it is sent. The server infers its type, but of a number with a fraction, which it may compare with whole ones."""
    if isinstance(value, str):
        return value.encode(encoding), Format.BINARY  # as text it would end at a zero character
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value), Format.BINARY
    return (None if value is None else str(value).encode()), Format.TEXT


@lru_cache(maxsize=512)
def _with_numbers(statement: str) -> str:
    numbers = count(1)
    return re.sub(r"\?", lambda _: f"${next(numbers)}", statement)

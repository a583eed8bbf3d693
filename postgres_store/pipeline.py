"""Statements whose rows nobody asks for, sent in one round trip (libpq's pipeline mode).

Psycopg has a pipeline mode too, which costs more than the round trips that it spares here.
"""

import re
import selectors
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import errors
from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus, Format

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn, PGresult

_LOST: Final = "the connection is lost"


@dataclass(frozen=True, slots=True)
class Told:
    """A statement whose rows nobody asks for, with ``?`` for values: texts, bytes, numbers, or None."""

    statement: str
    values: Sequence[Any] = ()


def tell(wire: "PGconn", statements: Sequence[Told], *, encoding: str) -> None:
    """Execute statements in order; none after one that fails. Raises the error of that one.

    wire: of a connection that is in a transaction. It cannot be used any more when anything else is raised.
    """
    wire.enter_pipeline_mode()
    for each in statements:
        values = [_sent(value, encoding) for value in each.values]
        wire.send_query_params(
            _with_numbers(each.statement).encode(encoding),
            [value for value, _ in values],
            param_formats=[form for _, form in values],
        )
    wire.pipeline_sync()
    failed = _failure(wire, encoding)
    wire.exit_pipeline_mode()
    if failed is not None:
        raise failed


def _failure(wire: "PGconn", encoding: str) -> "psycopg.Error | None":
    """Wait until the server has done what was sent; returns what has failed first."""
    failed: psycopg.Error | None = None
    with selectors.DefaultSelector() as selector:
        selector.register(wire.socket, selectors.EVENT_READ)
        while True:
            more = selectors.EVENT_WRITE if wire.flush() else 0
            while not wire.is_busy():
                result = wire.get_result()
                if result is None:  # between the results of two statements
                    if wire.status == ConnStatus.BAD:
                        raise psycopg.OperationalError(_LOST)
                elif result.status == ExecStatus.PIPELINE_SYNC:
                    return failed
                elif result.status == ExecStatus.FATAL_ERROR and failed is None:
                    failed = _error(result, encoding)
            selector.modify(wire.socket, selectors.EVENT_READ | more)
            selector.select()
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
    """A value as it is sent, whose type the server knows."""
    if isinstance(value, str):
        return value.encode(encoding), Format.BINARY  # as text it would end at a zero character
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value), Format.BINARY
    return (None if value is None else str(value).encode()), Format.TEXT


@lru_cache(maxsize=512)
def _with_numbers(statement: str) -> str:
    numbers = count(1)
    return re.sub(r"\?", lambda _: f"${next(numbers)}", statement)

"""The store in one SQLite file.

One worker thread owns the connection and runs whole transactions, one after the other, so that no two can
interleave on it. With a write-ahead log and ``synchronous=FULL`` what a method acknowledged is still there
after the process, or the machine, has died. The schema has a version; older files are brought up to date
when they are opened, newer ones are refused.
"""

import asyncio
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from secrets import token_bytes
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from relying_party.callers import ClientKind
from relying_party.credentials import Credential, CredentialUse, Registered, User
from relying_party.errors import Check, StoreUnavailable, UsageError, UserExists, VerificationFailed
from relying_party.sessions import Session

_Value = TypeVar("_Value")

APPLICATION_ID: Final = 0x68705250  # "hpRP", in the header of the file
BUSY_TIMEOUT: Final = 5.0  # seconds
MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        """CREATE TABLE users (
            handle BLOB PRIMARY KEY, name TEXT NOT NULL UNIQUE, display_name TEXT NOT NULL,
            created_at INTEGER NOT NULL) STRICT""",
        """CREATE TABLE credentials (
            credential_id BLOB PRIMARY KEY, user_handle BLOB NOT NULL REFERENCES users (handle),
            attested_data BLOB NOT NULL, aaguid BLOB NOT NULL, algorithm INTEGER NOT NULL,
            sign_count INTEGER NOT NULL, backup_eligible INTEGER NOT NULL, backed_up INTEGER NOT NULL,
            transports TEXT NOT NULL, attestation_object BLOB NOT NULL, client_data_hash BLOB NOT NULL,
            created_at INTEGER NOT NULL, last_used_at INTEGER,
            counter_anomalies INTEGER NOT NULL DEFAULT 0) STRICT""",
        "CREATE INDEX credentials_of_user ON credentials (user_handle)",
        """CREATE TABLE sessions (
            token_hash BLOB PRIMARY KEY, user_handle BLOB NOT NULL REFERENCES users (handle),
            credential_id BLOB NOT NULL, client_kind TEXT NOT NULL, key_thumbprint TEXT,
            created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL) STRICT""",
        "CREATE INDEX sessions_of_user ON sessions (user_handle)",
        "CREATE INDEX sessions_of_key ON sessions (key_thumbprint)",
        "CREATE TABLE secrets (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT",
    ),
)


class SqliteStore:
    """A `CredentialStore` in a file; an async context manager that opens and closes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="relying-party-store")
        self._connection: sqlite3.Connection | None = None

    async def __aenter__(self) -> Self:
        try:
            self._connection = await self._in_worker(lambda: _open(self._path))
        except BaseException:
            self._worker.shutdown(wait=False)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._in_worker(connection.close)
        self._worker.shutdown(wait=False)

    async def user_by_name(self, name: str) -> User | None:
        def work(connection: sqlite3.Connection) -> User | None:
            row = connection.execute("SELECT * FROM users WHERE name = ?", (name,)).fetchone()
            return None if row is None else _user(row)

        return await self._transaction(work)

    async def credentials_of(self, user_handle: bytes) -> Sequence[Credential]:
        return await self._transaction(lambda connection: _credentials_of(connection, user_handle))

    async def credential(self, credential_id: bytes) -> Credential | None:
        def work(connection: sqlite3.Connection) -> Credential | None:
            row = connection.execute(
                "SELECT * FROM credentials WHERE credential_id = ?", (credential_id,)
            ).fetchone()
            return None if row is None else _credential(row)

        return await self._transaction(work)

    async def register(
        self, credential: Credential, user: User, session: Session, *, ends: bytes | None
    ) -> User:
        def work(connection: sqlite3.Connection) -> User:
            stored = _user_by_handle(connection, user.handle)
            if stored is None:
                if connection.execute("SELECT 1 FROM users WHERE name = ?", (user.name,)).fetchone():
                    raise UserExists("that name is registered")
                connection.execute(
                    "INSERT INTO users VALUES (?, ?, ?, ?)",
                    (user.handle, user.name, user.display_name, credential.created_at),
                )
                stored = user
            if connection.execute(
                "SELECT 1 FROM credentials WHERE credential_id = ?", (credential.credential_id,)
            ).fetchone():
                raise VerificationFailed(Check.CREDENTIAL_TAKEN)
            _insert(
                connection,
                "credentials",
                {
                    "credential_id": credential.credential_id,
                    "user_handle": credential.user_handle,
                    "attested_data": credential.attested_data,
                    "aaguid": credential.aaguid,
                    "algorithm": credential.algorithm,
                    "sign_count": credential.sign_count,
                    "backup_eligible": credential.backup_eligible,
                    "backed_up": credential.backed_up,
                    "transports": json.dumps(credential.transports),
                    "attestation_object": credential.attestation_object,
                    "client_data_hash": credential.client_data_hash,
                    "created_at": credential.created_at,
                    "last_used_at": credential.last_used_at,
                    "counter_anomalies": credential.counter_anomalies,
                },
            )
            _replace_session(connection, session, ends)
            return stored

        return await self._transaction(work, writes=True)

    async def sign_in(self, use: CredentialUse, session: Session, *, ends: bytes | None) -> User:
        def work(connection: sqlite3.Connection) -> User:
            changed = connection.execute(
                """UPDATE credentials SET sign_count = max(sign_count, ?), backed_up = ?, last_used_at = ?,
                counter_anomalies = counter_anomalies + ? WHERE credential_id = ?""",
                (use.sign_count, use.backed_up, use.used_at, use.counter_anomaly, use.credential_id),
            )
            user = _user_by_handle(connection, session.user_handle)
            if changed.rowcount != 1 or user is None:
                raise VerificationFailed(Check.UNKNOWN_CREDENTIAL)
            _replace_session(connection, session, ends)
            return user

        return await self._transaction(work, writes=True)

    async def session(self, token_hash: bytes, *, now: float) -> tuple[Session, User] | None:
        def work(connection: sqlite3.Connection) -> tuple[Session, User] | None:
            row = connection.execute(
                "SELECT * FROM sessions WHERE token_hash = ? AND expires_at > ?", (token_hash, now)
            ).fetchone()
            user = None if row is None else _user_by_handle(connection, row["user_handle"])
            return None if user is None else (_session(row), user)

        return await self._transaction(work)

    async def end_session(self, token_hash: bytes) -> None:
        def work(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM sessions WHERE token_hash = ?", (token_hash,))

        await self._transaction(work, writes=True)

    async def everyone(self, *, now: float, most: int) -> Sequence[Registered]:
        def work(connection: sqlite3.Connection) -> list[Registered]:
            rows = connection.execute(
                "SELECT * FROM users ORDER BY created_at DESC, name LIMIT ?", (most,)
            ).fetchall()
            return [_registered(connection, _user(row), now) for row in rows]

        return await self._transaction(work)

    async def registered(self, user_handle: bytes, *, now: float) -> Registered | None:
        def work(connection: sqlite3.Connection) -> Registered | None:
            user = _user_by_handle(connection, user_handle)
            return None if user is None else _registered(connection, user, now)

        return await self._transaction(work)

    async def secret(self, name: str) -> bytes:
        def work(connection: sqlite3.Connection) -> bytes:
            connection.execute("INSERT OR IGNORE INTO secrets VALUES (?, ?)", (name, token_bytes(32)))
            row = connection.execute("SELECT value FROM secrets WHERE name = ?", (name,)).fetchone()
            return bytes(row["value"])

        return await self._transaction(work, writes=True)

    async def _transaction(
        self, work: Callable[[sqlite3.Connection], _Value], *, writes: bool = False
    ) -> _Value:
        connection = self._connection
        if connection is None:
            raise StoreUnavailable("the store is closed")

        def transaction() -> _Value:
            try:
                with _all_or_nothing(connection, "IMMEDIATE" if writes else "DEFERRED"):
                    return work(connection)
            except sqlite3.Error as error:
                raise StoreUnavailable(f"the store does not answer: {error}") from error

        return await self._in_worker(transaction)

    async def _in_worker(self, work: Callable[[], _Value]) -> _Value:
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)


def _open(path: Path) -> sqlite3.Connection:
    """A connection to a file of ours, made or brought up to date as needed; else `UsageError`."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # nobody else's to read
        connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_TIMEOUT)
        try:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            _migrate(connection, path)
        except BaseException:
            connection.close()
            raise
    except OSError as error:
        raise UsageError(f"cannot open the store {path}: {error.strerror}") from error
    except sqlite3.Error as error:
        raise UsageError(f"cannot open the store {path}: {error}") from error
    return connection


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    with _all_or_nothing(connection, "IMMEDIATE"):
        version, application = _pragma(connection, "user_version"), _pragma(connection, "application_id")
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if application != APPLICATION_ID and (tables or version):
            raise UsageError(f"{path} is a database of another program")
        if version > len(MIGRATIONS):
            raise UsageError(f"{path} was written by a newer version of this program")
        for statements in MIGRATIONS[version:]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


@contextmanager
def _all_or_nothing(connection: sqlite3.Connection, kind: str) -> Iterator[None]:
    connection.execute(f"BEGIN {kind}")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _replace_session(connection: sqlite3.Connection, session: Session, ends: bytes | None) -> None:
    """Open a session in place of the caller's last one: a key holds one session, and so does a browser."""
    connection.execute(
        "DELETE FROM sessions WHERE token_hash = ? OR key_thumbprint = ? OR expires_at <= ?",
        (ends, session.key_thumbprint, session.created_at),
    )
    _insert(
        connection,
        "sessions",
        {
            "token_hash": session.token_hash,
            "user_handle": session.user_handle,
            "credential_id": session.credential_id,
            "client_kind": str(session.client_kind),
            "key_thumbprint": session.key_thumbprint,
            "created_at": session.created_at,
            "expires_at": session.expires_at,
        },
    )


def _insert(connection: sqlite3.Connection, table: str, values: dict[str, Any]) -> None:
    names, marks = ", ".join(values), ", ".join(f":{name}" for name in values)
    connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", values)  # noqa: S608  our names


def _user_by_handle(connection: sqlite3.Connection, handle: bytes) -> User | None:
    row = connection.execute("SELECT * FROM users WHERE handle = ?", (handle,)).fetchone()
    return None if row is None else _user(row)


def _credentials_of(connection: sqlite3.Connection, handle: bytes) -> list[Credential]:
    rows = connection.execute(
        "SELECT * FROM credentials WHERE user_handle = ? ORDER BY created_at, credential_id", (handle,)
    ).fetchall()
    return [_credential(row) for row in rows]


def _registered(connection: sqlite3.Connection, user: User, now: float) -> Registered:
    rows = connection.execute(
        "SELECT * FROM sessions WHERE user_handle = ? AND expires_at > ? ORDER BY created_at DESC",
        (user.handle, now),
    ).fetchall()
    return Registered(
        user=user,
        credentials=tuple(_credentials_of(connection, user.handle)),
        sessions=tuple(_session(row) for row in rows),
    )


def _user(row: sqlite3.Row) -> User:
    return User(handle=row["handle"], name=row["name"], display_name=row["display_name"])


def _credential(row: sqlite3.Row) -> Credential:
    values: dict[str, Any] = dict(row)
    values["backup_eligible"] = bool(values["backup_eligible"])
    values["backed_up"] = bool(values["backed_up"])
    values["transports"] = tuple(json.loads(values["transports"]))
    return Credential(**values)


def _session(row: sqlite3.Row) -> Session:
    values: dict[str, Any] = dict(row)
    values["client_kind"] = ClientKind(values["client_kind"])
    return Session(**values)

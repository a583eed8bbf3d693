"""The store in one SQLite file.

One thread writes and one reads, each with a connection of its own and one transaction at a time, so that transactions
on a connection never interleave. With a write-ahead log and ``synchronous=FULL``, an acknowledged change survives a kill
and a power cut. The schema has a version: older files are migrated when they are opened, newer ones are refused.

Other programs may use the file too, such as a backup or a shell. While one of them holds the write lock, reads go on, and
a write waits `BUSY_TIMEOUT` seconds from its call, however many others wait too. After the file was moved, deleted or
replaced, every transaction fails: its change would be in a file that nobody reads again.
"""

import asyncio
import fcntl
import json
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path
from secrets import token_bytes
from time import monotonic
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from relying_party.core.callers import ClientKind
from relying_party.core.credentials import (
    MAX_PASSKEYS,
    MAX_SESSIONS,
    NEVER_USED_SECONDS,
    Credential,
    CredentialUse,
    Registered,
    User,
)
from relying_party.core.proofs import Proof, Step
from relying_party.core.removals import (
    CHANGES_OF_A_KIND,
    DELAY_SECONDS,
    SHOWN_SECONDS,
    Change,
    ChangeKind,
    Removal,
    is_delayed,
    may_call_off,
    remaining,
)
from relying_party.core.sessions import Session
from relying_party.errors import (
    Check,
    LastCredential,
    NotFound,
    ProofInvalid,
    SetupError,
    StoreUnavailable,
    TooManyPasskeys,
    UseDpopNonce,
    UserExists,
    VerificationFailed,
    YoungerPasskey,
)

_Value = TypeVar("_Value")

APPLICATION_ID: Final = 0x68705250  # "hpRP", in the header of the file
BUSY_TIMEOUT: Final = 5.0  # seconds
FORGOTTEN_AT_ONCE: Final = 10  # accounts, with each new one
USED_PROOFS: Final = (  # where several processes share them
    "CREATE TABLE proof_step (number INTEGER NOT NULL, began REAL NOT NULL, used INTEGER NOT NULL) STRICT",
    "INSERT INTO proof_step VALUES (0, 0.0, 0)",
    "CREATE TABLE used_proofs (digest BLOB PRIMARY KEY, step INTEGER NOT NULL) STRICT, WITHOUT ROWID",
    "CREATE INDEX used_proofs_by_step ON used_proofs (step)",
)
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
    (  # session ids and refresh tokens; labels of passkeys
        "ALTER TABLE credentials ADD COLUMN label TEXT",
        "ALTER TABLE credentials ADD COLUMN discoverable INTEGER",
        "ALTER TABLE credentials ADD COLUMN prf INTEGER",
        """CREATE TABLE sessions_2 (
            session_id BLOB PRIMARY KEY, token_hash BLOB NOT NULL UNIQUE,
            user_handle BLOB NOT NULL REFERENCES users (handle), credential_id BLOB NOT NULL,
            client_kind TEXT NOT NULL, key_thumbprint TEXT, label TEXT,
            created_at INTEGER NOT NULL, auth_time INTEGER NOT NULL,
            expires_at INTEGER NOT NULL, ends_at INTEGER NOT NULL,
            refresh_hash BLOB UNIQUE, previous_refresh_hash BLOB UNIQUE) STRICT""",
        """INSERT INTO sessions_2 SELECT randomblob(16), token_hash, user_handle, credential_id, client_kind,
            key_thumbprint, NULL, created_at, created_at, expires_at, expires_at, NULL, NULL FROM sessions""",
        "DROP TABLE sessions",
        "ALTER TABLE sessions_2 RENAME TO sessions",
        "CREATE INDEX sessions_of_user ON sessions (user_handle)",
        "CREATE INDEX sessions_of_key ON sessions (key_thumbprint)",
        "CREATE INDEX sessions_by_end ON sessions (ends_at)",
        """CREATE TABLE spent_refresh_tokens (
            refresh_hash BLOB PRIMARY KEY,
            session_id BLOB NOT NULL REFERENCES sessions (session_id) ON DELETE CASCADE) STRICT""",
        "CREATE INDEX spent_of_session ON spent_refresh_tokens (session_id)",
    ),
    (  # the last spent refresh token, and its time
        "ALTER TABLE sessions ADD COLUMN confirmed_refresh_hash BLOB",
        "ALTER TABLE sessions ADD COLUMN confirmed_at INTEGER",
    ),
    (  # step-ups, each for one operation
        """CREATE TABLE step_ups (
            session_id BLOB PRIMARY KEY REFERENCES sessions (session_id) ON DELETE CASCADE,
            operation BLOB NOT NULL, until INTEGER NOT NULL) STRICT""",
    ),
    (  # removals that are delayed; changes of accounts
        """CREATE TABLE removals (
            removal_id BLOB PRIMARY KEY,
            user_handle BLOB NOT NULL REFERENCES users (handle) ON DELETE CASCADE,
            credential_id BLOB UNIQUE REFERENCES credentials (credential_id) ON DELETE CASCADE,
            asked_by BLOB NOT NULL, asked_at INTEGER NOT NULL, due_at INTEGER NOT NULL) STRICT""",
        "CREATE INDEX removals_of_user ON removals (user_handle)",
        "CREATE INDEX removals_by_due ON removals (due_at)",
        """CREATE TABLE changes (
            change_id INTEGER PRIMARY KEY,
            user_handle BLOB NOT NULL REFERENCES users (handle) ON DELETE CASCADE,
            kind TEXT NOT NULL, at INTEGER NOT NULL, name TEXT, session_id BLOB, client_kind TEXT) STRICT""",
        "CREATE INDEX changes_of_user ON changes (user_handle, kind)",
    ),
    USED_PROOFS,
    (  # accounts that were never used
        "ALTER TABLE users ADD COLUMN used INTEGER NOT NULL DEFAULT 0",
        """UPDATE users SET used = 1 WHERE EXISTS (
            SELECT 1 FROM credentials WHERE user_handle = handle AND last_used_at IS NOT NULL)""",
        "CREATE INDEX users_never_used ON users (created_at) WHERE used = 0",
    ),
)


class Worker:
    """A connection with its own thread."""

    def __init__(self, path: Path, name: str, *, check: Callable[[], None]) -> None:
        """check: raises `StoreUnavailable` when the file was moved, deleted or replaced."""
        self._path, self._check = path, check
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"relying-party-{name}")
        self._connection: sqlite3.Connection | None = None

    async def open(self, prepare: Callable[[sqlite3.Connection, Path], None]) -> None:
        """Open the connection and prepare it; `SetupError` when the file cannot be a store."""
        self._connection = await self._run(lambda: _open(self._path, prepare))

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._run(connection.close)
        self._thread.shutdown(wait=False)

    async def transaction(self, kind: str, work: Callable[[sqlite3.Connection], _Value]) -> _Value:
        """Run `work` as one transaction, ``DEFERRED`` or ``IMMEDIATE``; `StoreUnavailable` for a transient failure."""
        connection, asked = self._connection, monotonic()
        if connection is None:
            raise StoreUnavailable("the store is closed")

        def transaction() -> _Value:
            left = max(0.0, asked + BUSY_TIMEOUT - monotonic())
            try:
                self._check()
                connection.execute(f"PRAGMA busy_timeout = {int(left * 1000)}")
                with all_or_nothing(connection, kind):
                    value = work(connection)
                self._check()  # a commit counts only in the file at the path
            except sqlite3.Error as error:
                raise StoreUnavailable(f"the store does not answer: {error}") from error
            return value

        return await self._run(transaction)

    async def _run(self, work: Callable[[], _Value]) -> _Value:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


class SqliteStore:
    """A `CredentialStore` in a file; an async context manager that opens and closes it."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._writer = Worker(self._path, "writer", check=self._check)
        self._reader = Worker(self._path, "reader", check=self._check)
        self._files: dict[Path, tuple[int, int] | None] = {}  # the open files, by device and inode
        self._nonces: bytes | None = None  # the key of the nonces, once it was read

    async def __aenter__(self) -> Self:
        try:
            await self._writer.open(_prepare)
            await self._reader.open(_only_read)
            self._files = {path: _identity(path) for path in map(Path, _files_of(self._path))}
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def user_by_name(self, name: str, *, now: float) -> User | None:
        def work(connection: sqlite3.Connection) -> User | None:
            row = connection.execute("SELECT * FROM users WHERE name = ?", (name,)).fetchone()
            return None if row is None else _user(row)

        return await self._settled(work, now)

    async def credentials_of(self, user_handle: bytes, *, now: float) -> Sequence[Credential]:
        return await self._settled(lambda connection: _credentials_of(connection, user_handle), now)

    async def credential(self, credential_id: bytes, *, now: float) -> Credential | None:
        def work(connection: sqlite3.Connection) -> Credential | None:
            row = connection.execute(
                "SELECT * FROM credentials WHERE credential_id = ?", (credential_id,)
            ).fetchone()
            return None if row is None else _credential(row)

        return await self._settled(work, now)

    async def register(
        self, credential: Credential, user: User, session: Session, *, ends: bytes | None
    ) -> User:
        def work(connection: sqlite3.Connection) -> User:
            if connection.execute("SELECT 1 FROM users WHERE name = ?", (user.name,)).fetchone():
                raise UserExists
            _forget_never_used(connection, credential.created_at)
            connection.execute(
                "INSERT INTO users (handle, name, display_name, created_at) VALUES (?, ?, ?, ?)",
                (user.handle, user.name, user.display_name, credential.created_at),
            )
            _add_credential(connection, credential)
            _open_session(connection, session, ends)
            return user

        return await self._transaction(work, writes=True)

    async def add_credential(self, credential: Credential, session: Session, *, was: bytes) -> User:
        def work(connection: sqlite3.Connection) -> User:
            user = _user_by_handle(connection, credential.user_handle)
            if user is None or not _replace_session(connection, session, was):
                raise VerificationFailed(Check.SESSION)
            if len(_credentials_of(connection, user.handle)) >= MAX_PASSKEYS:
                raise TooManyPasskeys("remove another one before")
            _add_credential(connection, credential)
            _note(connection, ChangeKind.PASSKEY_ADDED, None, by=session, now=credential.created_at)
            return user

        return await self._transaction(work, writes=True)

    async def sign_in(self, use: CredentialUse, session: Session, *, ends: bytes | None) -> User:
        def work(connection: sqlite3.Connection) -> User:
            user = _note_use(connection, use, session.user_handle)
            _open_session(connection, session, ends)
            return user

        return await self._transaction(work, writes=True)

    async def step_up(
        self, use: CredentialUse, session: Session, *, was: bytes, operation: bytes, until: int
    ) -> User:
        def work(connection: sqlite3.Connection) -> User:
            user = _note_use(connection, use, session.user_handle)
            if not _replace_session(connection, session, was):
                raise VerificationFailed(Check.SESSION)
            connection.execute(
                "INSERT OR REPLACE INTO step_ups VALUES (?, ?, ?)", (session.session_id, operation, until)
            )
            return user

        return await self._transaction(work, writes=True)

    async def spend_step_up(self, session_id: bytes, operation: bytes, *, now: float) -> bool:
        changed = await self._change(
            "DELETE FROM step_ups WHERE session_id = ? AND operation = ? AND until > ?",
            session_id,
            operation,
            now,
        )
        return changed > 0

    async def session(self, token_hash: bytes, *, now: float) -> tuple[Session, User] | None:
        return await self._session_where("token_hash = :hash AND expires_at > :now", token_hash, now)

    async def session_of_refresh(self, refresh_hash: bytes, *, now: float) -> tuple[Session, User] | None:
        return await self._session_where(
            """ends_at > :now AND session_id IN (
                SELECT session_id FROM sessions WHERE refresh_hash = :hash OR previous_refresh_hash = :hash
                UNION SELECT session_id FROM spent_refresh_tokens WHERE refresh_hash = :hash)""",
            refresh_hash,
            now,
        )

    async def is_signed_in(self, user_handle: bytes, key_thumbprint: str, *, now: float) -> bool:
        def work(connection: sqlite3.Connection) -> bool:
            found = connection.execute(
                "SELECT 1 FROM sessions WHERE key_thumbprint = ? AND user_handle = ? AND ends_at > ?",
                (key_thumbprint, user_handle, now),
            ).fetchone()
            return found is not None

        return await self._settled(work, now)

    async def replace_session(self, session: Session, *, was: bytes) -> bool:
        return await self._transaction(
            lambda connection: _replace_session(connection, session, was), writes=True
        )

    async def end_session(self, user_handle: bytes, session_id: bytes) -> bool:
        changed = await self._change(
            "DELETE FROM sessions WHERE user_handle = ? AND session_id = ?", user_handle, session_id
        )
        return changed > 0

    async def end_sessions(self, session_id: bytes | None, *, by: Session, now: float) -> int:
        def work(connection: sqlite3.Connection) -> int:
            rows = connection.execute(
                """DELETE FROM sessions WHERE user_handle = ? AND session_id <> ? AND session_id = coalesce(?, session_id)
                RETURNING label""",
                (by.user_handle, by.session_id, session_id),
            ).fetchall()
            if rows:
                name = rows[0]["label"] if session_id is not None else None
                _note(connection, ChangeKind.SESSIONS_ENDED, name, by=by, now=now)
            return len(rows)

        return await self._transaction(work, writes=True)

    async def rename_user(self, display_name: str, *, by: Session, now: float) -> None:
        def work(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE users SET display_name = ? WHERE handle = ?", (display_name, by.user_handle)
            )
            _note(connection, ChangeKind.NAME_CHANGED, display_name, by=by, now=now)

        await self._transaction(work, writes=True)

    async def rename_credential(
        self, credential_id: bytes, label: str | None, *, by: Session, now: float
    ) -> None:
        def work(connection: sqlite3.Connection) -> None:
            changed = connection.execute(
                "UPDATE credentials SET label = ? WHERE user_handle = ? AND credential_id = ?",
                (label, by.user_handle, credential_id),
            )
            if changed.rowcount != 1:
                raise NotFound("no such passkey")
            _note(connection, ChangeKind.PASSKEY_RENAMED, label, by=by, now=now)

        await self._transaction(work, writes=True)

    async def remove_credential(
        self, credential_id: bytes, *, removal_id: bytes, by: Session, now: float
    ) -> Removal | None:
        def work(connection: sqlite3.Connection) -> Removal | None:
            _settle(connection, now)
            theirs = {one.credential_id: one for one in _credentials_of(connection, by.user_handle)}
            removed, pending = theirs.get(credential_id), _removals_of(connection, by.user_handle)
            if removed is None:
                raise NotFound("no such passkey")
            stay = remaining([one.aged() for one in theirs.values()], credential_id, pending)
            if not stay:
                raise LastCredential("add another one before")
            if is_delayed(removed.aged(), stay, now=now):
                return _ask(connection, credential_id, removed.label, removal_id=removal_id, by=by, now=now)
            _remove_credential(connection, credential_id, but=by.session_id)
            _note(connection, ChangeKind.PASSKEY_REMOVED, removed.label, by=by, now=now)
            return None

        return await self._transaction(work, writes=True)

    async def remove_user(self, *, removal_id: bytes, by: Session, now: float) -> Removal | None:
        def work(connection: sqlite3.Connection) -> Removal | None:
            _settle(connection, now)
            theirs = [one.aged() for one in _credentials_of(connection, by.user_handle)]
            if any(one.is_old(now) for one in theirs):
                return _ask(connection, None, None, removal_id=removal_id, by=by, now=now)
            _remove_user(connection, by.user_handle)
            return None

        return await self._transaction(work, writes=True)

    async def call_off(self, removal_id: bytes, *, by: Session, now: float) -> None:
        def work(connection: sqlite3.Connection) -> None:
            _settle(connection, now)
            pending = {one.removal_id: one for one in _removals_of(connection, by.user_handle)}
            if removal_id not in pending:
                raise NotFound("no such removal")
            theirs = {one.credential_id: one for one in _credentials_of(connection, by.user_handle)}
            removal = pending[removal_id]
            if not may_call_off(removal, [one.aged() for one in theirs.values()], by.credential_id):
                raise YoungerPasskey(
                    "sign in with a passkey that is older than the one that asked for the removal"
                )
            connection.execute("DELETE FROM removals WHERE removal_id = ?", (removal_id,))
            target = theirs.get(removal.credential_id or b"")
            name = None if target is None else target.label
            _note(connection, ChangeKind.REMOVAL_CALLED_OFF, name, by=by, now=now)

        await self._transaction(work, writes=True)

    async def everyone(self, *, now: float, most: int) -> Sequence[Registered]:
        def work(connection: sqlite3.Connection) -> list[Registered]:
            rows = connection.execute(
                "SELECT * FROM users ORDER BY created_at DESC, name LIMIT ?", (most,)
            ).fetchall()
            return [_with_sessions(connection, _user(row), now) for row in rows]

        return await self._settled(work, now)

    async def registered(self, user_handle: bytes, *, now: float) -> Registered | None:
        def work(connection: sqlite3.Connection) -> Registered | None:
            user = _user_by_handle(connection, user_handle)
            if user is None:
                return None
            return replace(
                _with_sessions(connection, user, now),
                removals=tuple(_removals_of(connection, user_handle)),
                changes=tuple(_changes_of(connection, user_handle, now)),
            )

        return await self._settled(work, now)

    async def secret(self, name: str) -> bytes:
        def known(connection: sqlite3.Connection) -> bytes | None:
            row = connection.execute("SELECT value FROM secrets WHERE name = ?", (name,)).fetchone()
            return None if row is None else bytes(row["value"])

        def made(connection: sqlite3.Connection) -> bytes | None:
            connection.execute("INSERT OR IGNORE INTO secrets VALUES (?, ?)", (name, token_bytes(32)))
            return known(connection)

        found = await self._transaction(known) or await self._transaction(made, writes=True)
        if found is None:
            raise StoreUnavailable("the store does not keep its secrets")
        return found

    async def take_proof(self, proof: Proof, *, now: float) -> str:
        key = await self._nonce_key()

        outcome = await self._transaction(
            lambda connection: taken_proof(connection, proof, key, now), writes=True
        )
        if isinstance(outcome, UseDpopNonce):
            raise outcome
        return outcome

    async def _nonce_key(self) -> bytes:
        if self._nonces is None:
            self._nonces = await self.secret("dpop-nonce")
        return self._nonces

    async def _session_where(
        self, condition: str, token_hash: bytes, now: float
    ) -> tuple[Session, User] | None:
        def work(connection: sqlite3.Connection) -> tuple[Session, User] | None:
            row = connection.execute(
                f"SELECT * FROM sessions WHERE {condition}",  # noqa: S608  our words
                {"hash": token_hash, "now": now},
            ).fetchone()
            user = None if row is None else _user_by_handle(connection, row["user_handle"])
            return None if user is None else (_session(row), user)

        return await self._settled(work, now)

    async def _change(self, statement: str, *values: Any) -> int:
        """Run a statement; returns the number of changed rows."""
        return await self._transaction(
            lambda connection: connection.execute(statement, values).rowcount, writes=True
        )

    async def _settled(self, work: Callable[[sqlite3.Connection], _Value], now: float) -> _Value:
        """Read, after the removals that are due by `now`: nobody sees one that is due and not done."""

        def read(connection: sqlite3.Connection) -> tuple[_Value] | None:
            due = connection.execute("SELECT 1 FROM removals WHERE due_at <= ? LIMIT 1", (now,)).fetchone()
            return None if due else (work(connection),)

        found = await self._transaction(read)
        if found is not None:
            return found[0]
        await self._transaction(lambda connection: _settle(connection, now), writes=True)
        return await self._transaction(work)

    async def _transaction(
        self, work: Callable[[sqlite3.Connection], _Value], *, writes: bool = False
    ) -> _Value:
        worker, kind = (self._writer, "IMMEDIATE") if writes else (self._reader, "DEFERRED")
        return await worker.transaction(kind, work)

    def _check(self) -> None:
        if any(_identity(path) != known for path, known in self._files.items()):
            raise StoreUnavailable(
                f"the store is no longer the file at {self._path}: put it back, or start again with the one that is there"
            )

    async def _close(self) -> None:
        await self._reader.close()
        await self._writer.close()


def taken_proof(connection: sqlite3.Connection, proof: Proof, key: bytes, now: float) -> str | UseDpopNonce:
    """Use up a proof in the tables ``proof_step`` and ``used_proofs``; returns the newest nonce, or the refusal of an old one.

    A refusal is returned because its transaction counts: the step has begun all the same. key: of the nonces.
    """
    row = connection.execute("SELECT * FROM proof_step").fetchone()
    known = Step(number=row["number"], began=row["began"], used=row["used"])
    step = known.at(now)
    if step is not known:
        connection.execute("UPDATE proof_step SET number = ?, began = ?, used = 0", (step.number, step.began))
        connection.execute("DELETE FROM used_proofs WHERE step < ?", (step.number - 1,))
    try:
        nonce = step.check(proof, key)
    except UseDpopNonce as refusal:
        return refusal
    taken = connection.execute("INSERT OR IGNORE INTO used_proofs VALUES (?, ?)", (proof.digest, step.number))
    if taken.rowcount == 0:
        raise ProofInvalid("the proof was used before")
    connection.execute("UPDATE proof_step SET used = used + 1")
    return nonce


@contextmanager
def locked(path: Path, *, shared: bool) -> Iterator[None]:
    """Lock a store for one process, or for those that share it; `StoreUnavailable` when another one has it otherwise.

    The system releases the lock when the process ends, also when it is killed.
    """
    lock = path.with_name(path.name + ".lock")
    try:
        descriptor = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise SetupError(f"cannot open the store {path}: {error.strerror}") from error
    try:
        _refuse_others(lock, os.fstat(descriptor))
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreUnavailable(
                f"another relying party is using the store {path}: start each with --shared-store"
            ) from error
        except OSError as error:  # such as ENOLCK of a network file system without locks
            raise SetupError(f"cannot lock the store {path}: {error.strerror}") from error
        yield
    finally:
        os.close(descriptor)


def _open(path: Path, prepare: Callable[[sqlite3.Connection, Path], None]) -> sqlite3.Connection:
    """Open a store, and make a missing one; `SetupError` when the file cannot be a store."""
    try:
        _make_private(path)
        connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_TIMEOUT)
        try:
            connection.row_factory = sqlite3.Row
            prepare(connection, path)
        except BaseException:
            connection.close()
            raise
    except OSError as error:
        raise SetupError(f"cannot open the store {path}: {error.strerror}") from error
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise StoreUnavailable(f"another program keeps the store {path} locked") from error
        raise SetupError(f"cannot open the store {path}: {error}") from error
    except sqlite3.Error as error:
        raise SetupError(f"cannot open the store {path}: {error}") from error
    return connection


def _make_private(path: Path) -> None:
    """Create the file with mode 0600, which SQLite gives to its WAL and index too.

    An existing file is not opened: closing it would release all locks of this process on it, SQLite's too (POSIX).
    """
    _refuse_writers(path.parent)
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    for each in map(Path, _files_of(path)):
        with suppress(FileNotFoundError):
            _refuse_others(each, each.lstat())


def _refuse_others(path: Path, status: os.stat_result) -> None:
    """Refuse a store or lock that is no file, or of another user, or open to others. status: of `path` itself, if a link."""
    if not stat.S_ISREG(status.st_mode):
        raise SetupError(f"cannot open the store {path}: it is no plain file")
    if status.st_uid != os.geteuid():
        raise SetupError(f"{path} belongs to another user: run as that one, or chown it")
    if status.st_mode & 0o077:
        raise SetupError(f"{path} is open to others: chmod 0600 {path}")


def _refuse_writers(folder: Path) -> None:
    """Refuse a folder in which others can put another file in the place of ours; with the sticky bit, as in /tmp, they cannot."""
    status = folder.stat()
    if status.st_uid not in (0, os.geteuid()):
        raise SetupError(
            f"{folder} belongs to another user, who can replace the store: use a folder of your own"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX:
        raise SetupError(f"{folder} is writable by others, who can replace the store: chmod go-w {folder}")


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    if not _is_up_to_date(connection):
        with all_or_nothing(connection, "IMMEDIATE"):
            _migrate(connection, path)


def _only_read(connection: sqlite3.Connection, _: Path) -> None:
    connection.execute("PRAGMA query_only = ON")
    connection.execute("SELECT count(*) FROM users").fetchone()  # the file is there, and open, from now on


def _is_up_to_date(connection: sqlite3.Connection) -> bool:
    """Whether the file needs no migration, so that the program can start while another one holds the write lock."""
    version, application = _pragma(connection, "user_version"), _pragma(connection, "application_id")
    return (version, application) == (len(MIGRATIONS), APPLICATION_ID)


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    version, application = _pragma(connection, "user_version"), _pragma(connection, "application_id")
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if application != APPLICATION_ID and (tables or version):
        raise SetupError(f"{path} is a database of another program")
    if version > len(MIGRATIONS):
        raise SetupError(f"{path} was written by a newer version of this program")
    for statements in MIGRATIONS[version:]:
        for statement in statements:
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def _files_of(path: Path) -> tuple[str, str, str]:
    """The database, its write-ahead log and that one's index, which exist while a connection is open."""
    return f"{path}", f"{path}-wal", f"{path}-shm"


def _identity(path: Path) -> tuple[int, int] | None:
    """The identity of the file at `path`, device and inode; None without one."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextmanager
def all_or_nothing(connection: sqlite3.Connection, kind: str) -> Iterator[None]:
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


def _add_credential(connection: sqlite3.Connection, credential: Credential) -> None:
    if connection.execute(
        "SELECT 1 FROM credentials WHERE credential_id = ?", (credential.credential_id,)
    ).fetchone():
        raise VerificationFailed(Check.CREDENTIAL_TAKEN)
    values = {item.name: getattr(credential, item.name) for item in fields(credential)}
    _insert(connection, "credentials", {**values, "transports": json.dumps(credential.transports)})


def _note_use(connection: sqlite3.Connection, use: CredentialUse, user_handle: bytes) -> User:
    changed = connection.execute(
        """UPDATE credentials SET sign_count = max(sign_count, ?), backed_up = ?, last_used_at = ?,
        counter_anomalies = counter_anomalies + ?, backup_eligible = coalesce(?, backup_eligible)
        WHERE credential_id = ?""",
        (
            use.sign_count,
            use.backed_up,
            use.used_at,
            use.counter_anomaly,
            use.backup_eligible,
            use.credential_id,
        ),
    )
    connection.execute("UPDATE users SET used = 1 WHERE handle = ? AND used = 0", (user_handle,))
    user = _user_by_handle(connection, user_handle)
    if changed.rowcount != 1 or user is None:
        raise VerificationFailed(Check.UNKNOWN_CREDENTIAL)
    return user


def _forget_never_used(connection: sqlite3.Connection, now: float) -> None:
    """Remove a few accounts that were registered long ago, never signed in to since, and have no session."""
    rows = connection.execute(
        """SELECT handle FROM users WHERE used = 0 AND created_at <= ? AND NOT EXISTS (
            SELECT 1 FROM sessions WHERE user_handle = handle AND ends_at > ?) ORDER BY created_at LIMIT ?""",
        (now - NEVER_USED_SECONDS, now, FORGOTTEN_AT_ONCE),
    ).fetchall()
    for row in rows:
        _remove_user(connection, row["handle"])


def _open_session(connection: sqlite3.Connection, session: Session, ends: bytes | None) -> None:
    """Store a session in place of the caller's earlier one: a key or a browser has one session."""
    connection.execute(
        "DELETE FROM sessions WHERE session_id = ? OR key_thumbprint = ? OR ends_at <= ?",
        (ends, session.key_thumbprint, session.created_at),
    )
    connection.execute(
        """DELETE FROM sessions WHERE session_id IN (SELECT session_id FROM sessions WHERE user_handle = ?
        ORDER BY created_at DESC, auth_time DESC LIMIT -1 OFFSET ?)""",
        (session.user_handle, MAX_SESSIONS - 1),
    )
    _insert(connection, "sessions", _session_values(session))


def _settle(connection: sqlite3.Connection, now: float) -> None:
    """Do the removals that are due, one after the other: each ends those that its passkey asked for."""
    while row := connection.execute(
        """SELECT removal_id, removals.user_handle, credential_id, due_at, label
        FROM removals LEFT JOIN credentials USING (credential_id)
        WHERE due_at <= ? ORDER BY due_at, removal_id LIMIT 1""",
        (now,),
    ).fetchone():
        connection.execute("DELETE FROM removals WHERE removal_id = ?", (row["removal_id"],))
        if row["credential_id"] is None:
            _remove_user(connection, row["user_handle"])
            continue
        _remove_credential(connection, row["credential_id"], but=None)
        _note_for(connection, ChangeKind.PASSKEY_REMOVED, row["label"], row["user_handle"], row["due_at"])


def _ask(
    connection: sqlite3.Connection,
    credential_id: bytes | None,
    name: str | None,
    *,
    removal_id: bytes,
    by: Session,
    now: float,
) -> Removal:
    """Keep a removal until it is due; one that was asked for before keeps its time."""
    for known in _removals_of(connection, by.user_handle):
        if known.credential_id == credential_id:
            return known
    removal = Removal(
        removal_id=removal_id,
        credential_id=credential_id,
        asked_by=by.credential_id,
        asked_at=int(now),
        due_at=int(now) + DELAY_SECONDS,
    )
    values = {item.name: getattr(removal, item.name) for item in fields(removal)}
    _insert(connection, "removals", {**values, "user_handle": by.user_handle})
    _note(connection, ChangeKind.REMOVAL_ASKED, name, by=by, now=now)
    return removal


def _remove_credential(connection: sqlite3.Connection, credential_id: bytes, *, but: bytes | None) -> None:
    """Remove a passkey, the sessions that it opened, and the removals that it asked for. but: a session that goes on."""
    connection.execute("DELETE FROM removals WHERE asked_by = ?", (credential_id,))
    connection.execute(
        """DELETE FROM sessions WHERE credential_id = :id AND session_id IS NOT :but
        AND user_handle = (SELECT user_handle FROM credentials WHERE credential_id = :id)""",
        {"id": credential_id, "but": but},
    )
    connection.execute("DELETE FROM credentials WHERE credential_id = ?", (credential_id,))


def _remove_user(connection: sqlite3.Connection, handle: bytes) -> None:
    for table in ("sessions", "credentials"):
        connection.execute(f"DELETE FROM {table} WHERE user_handle = ?", (handle,))  # noqa: S608  our names
    connection.execute("DELETE FROM users WHERE handle = ?", (handle,))


def _removals_of(connection: sqlite3.Connection, handle: bytes) -> list[Removal]:
    rows = connection.execute(
        """SELECT removal_id, credential_id, asked_by, asked_at, due_at FROM removals WHERE user_handle = ?
        ORDER BY due_at, removal_id""",
        (handle,),
    ).fetchall()
    return [Removal(**dict(row)) for row in rows]


def _changes_of(connection: sqlite3.Connection, handle: bytes, now: float) -> list[Change]:
    rows = connection.execute(
        """SELECT kind, at, name, session_id, client_kind FROM changes WHERE user_handle = ? AND at > ?
        ORDER BY at DESC, change_id DESC""",
        (handle, now - SHOWN_SECONDS),
    ).fetchall()
    return [
        Change(
            kind=ChangeKind(row["kind"]),
            at=row["at"],
            name=row["name"],
            session_id=row["session_id"],
            client_kind=None if row["client_kind"] is None else ClientKind(row["client_kind"]),
        )
        for row in rows
    ]


def _note(
    connection: sqlite3.Connection, kind: ChangeKind, name: str | None, *, by: Session, now: float
) -> None:
    """Note a change for the user's other sessions."""
    _note_for(connection, kind, name, by.user_handle, int(now), by=by)


def _note_for(
    connection: sqlite3.Connection,
    kind: ChangeKind,
    name: str | None,
    handle: bytes,
    at: int,
    *,
    by: Session | None = None,
) -> None:
    values = {
        "user_handle": handle,
        "kind": str(kind),
        "at": at,
        "name": name,
        "session_id": None if by is None else by.session_id,
        "client_kind": None if by is None else str(by.client_kind),
    }
    _insert(connection, "changes", values)
    connection.execute(
        """DELETE FROM changes WHERE user_handle = :user_handle AND kind = :kind AND change_id NOT IN (
            SELECT change_id FROM changes WHERE user_handle = :user_handle AND kind = :kind
            ORDER BY change_id DESC LIMIT :most)""",
        {"user_handle": handle, "kind": str(kind), "most": CHANGES_OF_A_KIND},
    )


def _replace_session(connection: sqlite3.Connection, session: Session, was: bytes) -> bool:
    row = connection.execute(
        "SELECT * FROM sessions WHERE session_id = ? AND token_hash = ?", (session.session_id, was)
    ).fetchone()
    if row is None:
        return False
    connection.execute(
        """UPDATE sessions SET token_hash = :token_hash, credential_id = :credential_id, auth_time = :auth_time,
        expires_at = :expires_at, ends_at = :ends_at, refresh_hash = :refresh_hash,
        previous_refresh_hash = :previous_refresh_hash, confirmed_refresh_hash = :confirmed_refresh_hash,
        confirmed_at = :confirmed_at WHERE session_id = :session_id""",
        _session_values(session),
    )
    for spent in (row["refresh_hash"], row["previous_refresh_hash"]):
        if spent not in (None, session.refresh_hash, session.previous_refresh_hash):
            connection.execute("INSERT INTO spent_refresh_tokens VALUES (?, ?)", (spent, session.session_id))
    return True


def _session_values(session: Session) -> dict[str, Any]:
    values = {item.name: getattr(session, item.name) for item in fields(session)}
    values["client_kind"] = str(session.client_kind)
    return values


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


def _with_sessions(connection: sqlite3.Connection, user: User, now: float) -> Registered:
    rows = connection.execute(
        "SELECT * FROM sessions WHERE user_handle = ? AND ends_at > ? ORDER BY created_at DESC",
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
    for name in ("discoverable", "prf"):
        values[name] = None if values[name] is None else bool(values[name])
    values["transports"] = tuple(json.loads(values["transports"]))
    return Credential(**values)


def _session(row: sqlite3.Row) -> Session:
    values: dict[str, Any] = dict(row)
    values["client_kind"] = ClientKind(values["client_kind"])
    return Session(**values)

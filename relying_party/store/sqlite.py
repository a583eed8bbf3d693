"""The store in one SQLite file.

One thread writes and one reads, each with a connection of its own and one transaction at a time, so that transactions
on a connection never interleave. With a write-ahead log and ``synchronous=FULL``, an acknowledged change survives a kill
and a power cut. The schema has a version: older files are migrated when they are opened, newer ones are refused.

Other programs may use the file too, such as a backup or a shell. While one of them holds the write lock, reads go on, and
a write waits `BUSY_TIMEOUT` seconds from its call, however many others wait too. After the file was moved, deleted or
replaced, every transaction fails: its change would be in a file that nobody reads again. On a full disk the log is copied into
the file and written over, so that it goes on for as long as the file itself does not have to grow.
"""

import asyncio
import fcntl
import logging
import os
import sqlite3
import stat
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from relying_party.core.proofs import Proof, Step
from relying_party.errors import (
    ProofInvalid,
    SetupError,
    StoreUnavailable,
    UseDpopNonce,
)
from relying_party.store.sql import MIGRATIONS, SqlStore, Transaction, forget_spent_of

_Value = TypeVar("_Value")

APPLICATION_ID: Final = 0x68705250  # "hpRP", in the header of the file
BUSY_TIMEOUT: Final = 5.0  # seconds
# the bytes of the file that whoever reads it locks, the first and how many (SQLite's file locking, "SHARED")
_SHARED: Final = (0x40000002, 510)
PORTION: Final = 5_000  # spent refresh tokens that one transaction forgets before their sessions end
_LOG_KEPT: Final = 32 << 20  # bytes of the write-ahead log that are kept when it begins again

logger = logging.getLogger(__name__)


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

        def whole() -> _Value:
            with all_or_nothing(connection, kind):
                return work(connection)

        def transaction() -> _Value:
            left = max(0.0, asked + BUSY_TIMEOUT - monotonic())
            try:
                self._check()
                connection.execute(f"PRAGMA busy_timeout = {int(left * 1000)}")
                try:
                    value = whole()
                except sqlite3.OperationalError as error:
                    if not _found_no_room(error):
                        raise
                    # what of the log is copied into the file is written over, which needs no room
                    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
                    value = whole()
                self._check()  # a commit counts only in the file at the path
            except sqlite3.Error as error:
                raise StoreUnavailable(f"the store does not answer: {error}") from error
            return value

        return await self._run(transaction)

    async def _run(self, work: Callable[[], _Value]) -> _Value:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


class SqliteStore(SqlStore):
    """A `CredentialStore` in a file; an async context manager that opens and closes it."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._writer = Worker(self._path, "writer", check=self._check_and_tell)
        self._reader = Worker(self._path, "reader", check=self._check)
        self._files: dict[Path, tuple[int, int] | None] = {}  # the open files, by device and inode
        self._nonces: bytes | None = None  # the key of the nonces, once it was read
        self._log_bytes = 0
        self._is_told = False  # that the log grows

    @property
    def log_bytes(self) -> int:
        """The length of the write-ahead log when the store was last used."""
        return self._log_bytes

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

    def _make_ready(
        self, connection: Transaction, which: str, values: Sequence[Any] | Mapping[str, Any]
    ) -> bool:
        """Forget spent refresh tokens of the sessions in portions, in transactions of their own: all other writes wait for each."""
        return forget_spent_of(connection, which, values, most=PORTION) < PORTION

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
        _, log, _ = _files_of(self._path)
        with suppress(OSError):
            self._log_bytes = Path(log).stat().st_size

    def _check_and_tell(self) -> None:
        """Check as `_check`, and log that the log grows, and that it does no more: once each. In the writer's thread."""
        self._check()
        size = self._log_bytes
        grows = size > _LOG_KEPT
        if grows and not self._is_told:
            why = "its write-ahead log grows while another program reads the store"
            logger.warning("the store %s: %s (%d MiB now)", self._path, why, size >> 20)
        if self._is_told and not grows:
            logger.warning("the store %s: its write-ahead log is copied and begun again", self._path)
        self._is_told = grows

    async def _close(self) -> None:
        with _log_kept(self._path) if self._others_write() else nullcontext():
            await self._reader.close()
            await self._writer.close()

    def _others_write(self) -> bool:
        """Whether others have written to a log in the place of ours, which was removed: the index, which is one, is of both."""
        _, log, _ = map(Path, _files_of(self._path))
        try:
            return log in self._files and _identity(log) != self._files[log] and log.stat().st_size > 0
        except OSError:
            return False


@contextmanager
def _log_kept(path: Path) -> Iterator[None]:
    """Let SQLite close its connections as it does while another program reads the file: it copies no log then, and removes none.

    Without Linux' locks of an open file it does both.
    """
    with ExitStack() as held:
        with suppress(OSError):  # a file that is gone is not copied into either
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            held.callback(os.close, descriptor)
            if sys.platform == "linux":
                lock = struct.pack("hhqqi", fcntl.F_RDLCK, os.SEEK_SET, *_SHARED, 0)
                fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, lock)
        yield


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
    taken = connection.execute(
        "INSERT INTO used_proofs VALUES (?, ?) ON CONFLICT DO NOTHING", (proof.digest, step.number)
    )
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


def opened(path: Path) -> sqlite3.Connection:
    """Open a store for this thread, and make a missing one; `SetupError` when the file cannot be a store."""
    return _open(path, _prepare)


def opened_as_it_is(path: Path) -> sqlite3.Connection:
    """Open a store for this thread, and leave it in the version that it has. Raises as `opened`."""
    return _open(path, _expect_whole)


def version_of(path: Path) -> int:
    """The number of the last step of the schema that was made in a file; 0 of an empty one. It changes nothing.

    Raises as `opened`.
    """
    with closing(_open(path, _check_kind)) as connection:
        return _pragma(connection, "user_version")


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
        if error.sqlite_errorcode == sqlite3.SQLITE_IOERR_SHORT_READ:  # of what the index says is in the log
            raise SetupError(_removed(path)) from error
        why = f"the disk is full ({error})" if _is_full(error) else str(error)
        raise SetupError(f"cannot open the store {path}: {why}") from error
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
    _check_kind(connection, path)
    if not os.access(path, os.W_OK):  # SQLite opens it all the same, and refuses each change
        raise SetupError(f"cannot open the store {path}: it can only be read")
    connection.execute("PRAGMA journal_mode = WAL")
    _expect_log(connection, path)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute(f"PRAGMA journal_size_limit = {_LOG_KEPT}").fetchall()
    if not _is_up_to_date(connection):
        with all_or_nothing(connection, "IMMEDIATE"):
            _migrate(connection, path)


def _expect_whole(connection: sqlite3.Connection, path: Path) -> None:
    _check_kind(connection, path)
    _expect_log(connection, path)


def _expect_log(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a store whose log was removed while another program has it open: what is written then is found by nobody.

    All who have the store open share the log's index, which goes on with what was removed.
    """
    _, frames, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    if frames > 0 and Path(f"{path}-wal").stat().st_size == 0:
        raise SetupError(_removed(path))


def _removed(path: Path) -> str:
    return f"{path}-wal was removed while another program has the store open: end that program first"


def _only_read(connection: sqlite3.Connection, _: Path) -> None:
    connection.execute("PRAGMA query_only = ON")
    connection.execute("SELECT count(*) FROM users").fetchone()  # the file is there, and open, from now on


def _is_up_to_date(connection: sqlite3.Connection) -> bool:
    """Whether the file needs no migration, so that the program can start while another one holds the write lock."""
    version, application = _pragma(connection, "user_version"), _pragma(connection, "application_id")
    return (version, application) == (len(MIGRATIONS), APPLICATION_ID)


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    _check_kind(connection, path)
    for statements in MIGRATIONS[_pragma(connection, "user_version") :]:
        for statement in statements:
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def _check_kind(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a database that is no store of this version."""
    version, application = _pragma(connection, "user_version"), _pragma(connection, "application_id")
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if application != APPLICATION_ID and (tables or version):
        raise SetupError(f"{path} is a database of another program")
    if version > len(MIGRATIONS):
        raise SetupError(f"{path} was written by a newer version of this program")


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


def _found_no_room(error: sqlite3.Error) -> bool:
    """Whether the disk has no room, or a user no share of it left: of that SQLite only says that it could not write."""
    return _is_full(error) or getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_WRITE


def _is_full(error: sqlite3.Error) -> bool:
    """Whether the disk has no room for the file or its log, or for the log's index."""
    return getattr(error, "sqlite_errorcode", 0) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)


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

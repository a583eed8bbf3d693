"""The relay's store: one SQLite file, in which transactions are committed on the event loop and synced by a thread.

A transaction is short, runs on the event loop without a hop to a thread, and is committed without waiting for the disk; whoever
waits for news sees it from then on. `transact` returns once it is on the disk: an acknowledged change survives a kill and a
power cut. Syncs are made by one thread, one at a time, and each serves all who wait (group commit).

While another process holds the write lock, transactions wait in their order, `_BUSY_SECONDS` from the call of each at most, and
the event loop goes on. After the file was moved, deleted or replaced, every transaction fails: its change would be in a file
that nobody reads again. After a sync that failed every transaction fails until the store is opened again: what the system
could not write it may have dropped, and the next sync would not say so. The write-ahead log is not copied into the file any more
then, also not when the store is closed: a page of it that was dropped reads as what the disk had before. An opening goes by the
log's checksums, and copies what is whole before anything is answered.
"""

import asyncio
import contextlib
import fcntl
import logging
import math
import os
import sqlite3
import stat
import struct
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from time import monotonic, time
from typing import Any, Final, TypeAlias, TypeVar

from companion_push.errors import StoreBusy, StoreUnavailable, StoreUnusable
from companion_push.relay.nodes import WakeUp
from headless_passkey.errors import SetupError, SetupReason
from headless_passkey.process.private_file import reason_of, refuse_others, refuse_writers
from headless_passkey.process.tasks import to_its_end, until_done

_APPLICATION_ID: Final = 0x68704B32  # "hpK2" in the file's header: a store of this program
_EARLIER_ID: Final = 0x68704B31  # "hpK1": of a version whose rings nobody reads any more
_BUSY_SECONDS: Final = 5.0  # for an `account add` beside a running relay
_BUSY_PAUSE: Final = 0.005  # seconds until a locked store is tried again
# when the write-ahead log is copied into the file: after so many commits, which write some 4 MiB, or when it grows by so many bytes
COMMITS: Final = 256
CHECKPOINT: Final = 4 << 20
_TOO_LONG: Final = 8 * CHECKPOINT  # bytes of a log that is not kept for what comes next
# how a log begins, by the order of its checksums' bytes (SQLite's WAL format)
_LOG_BEGINS: Final = (bytes.fromhex("377f0682"), bytes.fromhex("377f0683"))
_COPY_PAUSE: Final = 1.0  # seconds until a log is copied again that could not be
# the bytes of the file that whoever reads it locks, the first and how many (SQLite's file locking, "SHARED")
_SHARED: Final = (0x40000002, 510)

logger = logging.getLogger(__name__)

T = TypeVar("T")
_Waiting: TypeAlias = list[tuple[asyncio.Future[Any], Any]]  # with what each gets


class Database:
    """An open store. Made by `open_database`."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")  # opens, and copies
        self._syncer = Thread(target=self._sync, name="store-sync", daemon=True)
        # whether to sync, or to end the thread. An executor takes 10 µs more to hand it over
        self._to_sync: SimpleQueue[bool] = SimpleQueue()
        self._connection: sqlite3.Connection
        self._checkpoints: sqlite3.Connection  # of the thread
        self._paths: list[str] = []  # of the open files
        self._files: list[tuple[int, int]] = []  # what they are
        self._log = -1  # the write-ahead log's descriptor
        self._size = 0  # bytes that it had when the last sync began, or a transaction found no room
        self._turn = asyncio.Lock()  # of transactions while the store is locked
        self._commits = 0
        self._synced = 0  # so many commits are on the disk
        self._is_syncing = False
        self._covered = 0  # so many commits are on the disk when that sync is over: those of before it began
        self._served: _Waiting = []  # who waits for it
        self._waiting: _Waiting = []  # for the next one, which begins when that one is over
        self._copying: asyncio.Future[None] | None = None
        self._copied = 0  # so many commits were copied, or are being so
        self._kept = 0  # bytes of the log that are written over
        self._copies_at = 0.0  # by the event loop's clock: when the log may be copied again
        self._told: str | None = None  # why it is not copied, as was logged last
        self._damage: str | None = None  # why nothing is taken any more
        self._seen = 0  # the number of what others have committed, when it was looked at last

    async def transact(
        self,
        work: Callable[[sqlite3.Connection], T],
        *,
        committed: Callable[[T], None] = lambda _result: None,
        durable: Callable[[T], bool] = lambda _result: True,
    ) -> T:
        """Run `work` as one transaction on the event loop; rolled back when it raises.

        committed: is called as soon as others see the change, before it is on the disk. durable: whether what was read and
        changed, by this transaction and by all before it, is on the disk when this returns; False for a reader whose answer may
        be lost with a power cut. `StoreUnavailable`, of which `StoreBusy` is one, when the store does not answer.
        """
        asked = monotonic()
        async with self._turn:
            while True:
                try:
                    result = self._checked(work)
                    break
                except StoreBusy:
                    if monotonic() >= asked + _BUSY_SECONDS:
                        raise
                await asyncio.sleep(_BUSY_PAUSE)
        on_disk = self.on_disk(result) if durable(result) else None  # it begins before others are woken
        committed(result)
        return result if on_disk is None else await on_disk

    def now(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` as one transaction in this very moment, as `transact` does; it may be lost until `on_disk`.

        `StoreBusy` when the store is locked, or others wait for that.
        """
        if self._turn.locked():
            raise StoreBusy(f"another process keeps the store {self._path} locked")
        return self._checked(work)

    @property
    def is_remote(self) -> bool:
        """Whether a transaction waits for a network: a file's does not."""
        return False

    @property
    def is_on_disk(self) -> bool:
        """Whether every commit is on the disk."""
        return self._synced >= self._commits

    def leave(self) -> None:
        """Nobody is asked where a file is."""

    @property
    def log_bytes(self) -> int:
        """The length of the write-ahead log."""
        try:
            return os.fstat(self._log).st_size
        except OSError:
            return 0

    def time_of(self, db: object) -> float:  # noqa: ARG002  the system's clock is everybody's
        return time()

    def clock(self) -> float:
        return time()

    def others_wrote(self) -> bool:
        """Whether another process has committed since the last call, or since the opening. It takes some microseconds.

        True now and then of a copied log too. `StoreUnavailable` when the store does not answer.
        """
        before, self._seen = self._seen, self._number_of_others()
        return self._seen != before

    def _number_of_others(self) -> int:
        try:
            (number,) = self._connection.execute("PRAGMA data_version").fetchone()
        except sqlite3.Error as error:
            raise StoreUnavailable(f"the store does not answer: {error}") from error
        return int(number)

    def tell(self, db: object, wake: WakeUp) -> None:
        """The relay looks by itself whether others have committed."""

    @property
    def nodes(self) -> None:
        """One process uses a file at a time."""

    def _checked(self, work: Callable[[sqlite3.Connection], T]) -> T:
        self._check()
        before = self._connection.total_changes
        try:
            result = _transaction(self._connection, work)
        except sqlite3.Error as error:
            if _is_locked(error):
                raise StoreBusy(f"another process keeps the store {self._path} locked") from error
            if _is_unsynced(error):
                raise self._damaged_by(error, str(error)) from error
            if _is_full(error) or _extended(error) == sqlite3.SQLITE_IOERR_WRITE:  # so a quota is told
                self._loop.call_soon_threadsafe(self._make_room)
            raise StoreUnavailable(f"the store does not answer: {error}") from error
        if self._connection.total_changes != before:
            self._commits += 1
        return result

    def _check(self) -> None:
        if self._damage is not None:
            raise StoreUnavailable(self._damage)
        try:
            found = _identities(self._paths)
        except OSError:
            found = []
        if found != self._files:
            raise StoreUnavailable(
                f"the store is no longer the file at {self._path}: put it back, or start again with the one that is there"
            )

    def on_disk(self, result: T) -> "asyncio.Future[T]":
        """Wait until every commit of before is on the disk: from now on, whenever the future is awaited. It has the result then."""
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        if self.is_on_disk:
            done.set_result(result)
            return done
        is_served = self._is_syncing and self._covered == self._commits
        (self._served if is_served else self._waiting).append((done, result))
        if not self._is_syncing:
            self._begin_sync()
        try:
            self._check()  # beside the sync: a commit counts only in the file at the path
        except StoreUnavailable as error:
            _fail(done, error)
        return done

    def _begin_sync(self) -> None:
        """Begin a sync for all who wait."""
        self._served, self._waiting = self._waiting, []
        if self._damage is not None:  # a sync of before has failed
            self._end_waiting(StoreUnavailable(self._damage))
            return
        self._covered, self._is_syncing = self._commits, True
        self._to_sync.put(True)
        self._size = self.log_bytes

    def _sync(self) -> None:
        """Sync the write-ahead log whenever it is asked for, in a thread."""
        while self._to_sync.get():
            failed = None
            try:
                os.fdatasync(self._log)
            except OSError as error:
                failed = error
            try:
                self._loop.call_soon_threadsafe(self._end_sync, failed)
            except RuntimeError:  # the loop was closed before its store, and nobody waits any more
                return

    def _end_sync(self, failed: OSError | None) -> None:
        self._is_syncing = False
        if failed is not None:
            self._end_waiting(self._damaged_by(failed, failed.strerror or "an error"))
        else:
            self._synced = self._covered
            self._end_waiting()
            if self._size > self._kept + CHECKPOINT or self._synced >= self._copied + COMMITS:
                self._begin_copy()
        if self._waiting:
            self._begin_sync()

    def _damaged_by(self, cause: Exception, why: str) -> StoreUnavailable:
        """Take nothing any more, since a sync has failed; returns what to tell."""
        self._damage = f"the store could not be written to the disk ({why}): start again"
        error = StoreUnavailable(self._damage)
        error.__cause__ = cause
        return error

    def _end_waiting(self, error: StoreUnavailable | None = None) -> None:
        """End the waiting of those whom the sync serves, and who wait still."""
        served, self._served = self._served, []
        for each, result in served:
            if error is not None:
                _fail(each, error)
            elif not each.done():
                each.set_result(result)

    def _make_room(self) -> None:
        """Copy the log where the disk has no room for more of it: what comes next is written over what was copied."""
        self._size = self.log_bytes
        self._begin_copy()

    def _begin_copy(self) -> None:
        is_due = self._loop.time() >= self._copies_at and self._damage is None
        if is_due and (self._copying is None or self._copying.done()):
            self._copying = asyncio.ensure_future(self._copy(self._size))

    async def _copy(self, size: int) -> None:
        """Copy the write-ahead log into the file (a checkpoint), and begin it again. size: bytes of the log.

        Most is copied beside transactions; they wait while the rest is. The log keeps its bytes, which are written over: that is
        on the disk sooner than what makes a file longer. One that could not be copied is left as it is, with all that is
        acknowledged, until it is longer still; one that is too long, or for which there is no room, for a second.
        """
        self._copied = self._commits
        failed: sqlite3.Error | None = None
        is_done = False
        try:
            await self._in_thread(lambda: self._checkpoint("PASSIVE"))
            async with self._turn:
                how = "RESTART" if size < _TOO_LONG else "TRUNCATE"
                is_done = await self._in_thread(lambda: self._checkpoint(how))
        except sqlite3.Error as error:
            failed = error
        if failed is not None and _is_unsynced(failed):
            logger.error("%s", self._damaged_by(failed, "of the file itself"))
            return
        self._kept = size if size < _TOO_LONG else 0
        if is_done:
            self._tell(None)
            return
        if failed is not None and not _is_locked(failed):
            self._tell(f"its write-ahead log cannot be copied: {failed}")
        elif size >= _TOO_LONG:
            self._tell("its write-ahead log grows while another program reads the store, or keeps it locked")
        else:
            return  # somebody reads for a moment
        self._copies_at = max(self._copies_at, self._loop.time() + _COPY_PAUSE)

    def _tell(self, trouble: str | None) -> None:
        """Log that the log cannot be begun again, and that it can: once each."""
        if trouble is not None and self._told is None:
            logger.warning("the store %s: %s (%d MiB now)", self._path, trouble, self.log_bytes >> 20)
        if trouble is None and self._told is not None:
            logger.warning("the store %s: its write-ahead log is copied and begun again", self._path)
        self._told = trouble

    def _checkpoint(self, how: str) -> bool:
        """Copy what can be copied, and then begin again unless `how` is ``PASSIVE``; returns whether all of that was done."""
        is_busy, _, _ = self._checkpoints.execute(f"PRAGMA wal_checkpoint({how})").fetchone()
        return not is_busy

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _settled(self) -> None:
        """Wait for the syncs and the copy that are under way."""
        while self._is_syncing:
            over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._served.append((over, None))
            await until_done(over)
        if self._copying is not None:
            await until_done(self._copying)

    async def _end(self) -> None:
        """Wait as `_settled`, and begin no other copy: closing is one."""
        self._copies_at = math.inf
        await self._settled()

    def _open(self, *, migrates: bool) -> None:
        with _translated(self._path):
            _make_private_file(self._path)
            self._connection = _connect(self._path)
            log, _ = _companions(self._path)
            _copy_what_is_there(self._connection, log)
            if migrates:
                _migrate(self._connection)
            # from here on commits are synced by `_sync`, and the log is copied by `_checkpoint`
            for pragma in ("synchronous=NORMAL", "wal_autocheckpoint=0", "busy_timeout=0"):
                self._connection.execute(f"PRAGMA {pragma}").fetchall()
            self._seen = self._number_of_others()
            self._checkpoints = _connect(self._path)
            self._checkpoints.execute("PRAGMA busy_timeout=0").fetchall()
            self._log = os.open(log, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            _sync_folder(self._path.parent)  # the log's name is in it
            self._paths = [str(path) for path in (self._path, *_companions(self._path))]
            self._files = _identities(self._paths)
            self._syncer.start()

    def _others_write(self) -> bool:
        """Whether others have written to a log in the place of ours, which was removed: the index, which is one, is of both."""
        log, known = self._paths[1:2], self._files[1:2]
        try:
            return _identities(log) != known and Path(*log).stat().st_size > 0
        except OSError:
            return False

    def _close(self) -> None:
        self._threads.shutdown()  # an opening that was cancelled goes on in its thread
        if self._syncer.is_alive():
            self._to_sync.put(False)
            self._syncer.join()
        is_kept = self._damage is not None or self._others_write()
        with _log_kept(self._path) if is_kept else contextlib.nullcontext():
            for connection in ("_checkpoints", "_connection"):
                if hasattr(self, connection):
                    getattr(self, connection).close()
        if self._log >= 0:
            os.close(self._log)


def _copy_what_is_there(connection: sqlite3.Connection, log: Path) -> None:
    """Copy the log that is found. `StoreUnusable` where another program has the store open, and not this log.

    What is read of it may be in the system's memory only, after a sync of before that failed. In the file it is synced before
    anybody is told of it. A log that was removed while somebody has it open goes on there: all who have the store open share its
    index, and what is written to another log is found by nobody.
    """
    _, frames, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    if frames > 0 and not _begins_as_log(log):
        raise StoreUnusable(_removed(log), reason=SetupReason.STATE_DAMAGED)


def _removed(log: Path) -> str:
    return f"{log} was removed while another program has the store open: end that program first"


def _begins_as_log(log: Path) -> bool:
    with log.open("rb") as file:
        return file.read(4) in _LOG_BEGINS


def _fail(waiting: "asyncio.Future[Any]", error: StoreUnavailable) -> None:
    """End a waiting with an error. Nobody may be waiting any more; the next transaction says it."""
    if not waiting.done():
        waiting.set_exception(error)
        waiting.exception()


@contextlib.contextmanager
def _log_kept(path: Path) -> Iterator[None]:
    """Let SQLite close its connections as it does while another program reads the file: it copies no log then, and removes none.

    Without Linux' locks of an open file it does both.
    """
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # a file that is gone is not copied into either
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            held.callback(os.close, descriptor)
            if sys.platform == "linux":
                lock = struct.pack("hhqqi", fcntl.F_RDLCK, os.SEEK_SET, *_SHARED, 0)
                fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, lock)
        yield


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.asynccontextmanager
async def open_database(path: Path, *, migrates: bool = True) -> AsyncIterator[Database]:
    """Open the store in `path`, and make a missing one. migrates: to the newest schema; else it is left as it is.

    Raises `StoreUnusable` when the file cannot be a store, `StoreBusy` when another process keeps it locked.
    """
    database = Database(path)
    try:
        # opening and closing are its other half
        await database._in_thread(lambda: database._open(migrates=migrates))  # noqa: SLF001
        yield database
    finally:
        try:
            await database._end()  # noqa: SLF001
        finally:
            await to_its_end(asyncio.to_thread(database._close))  # noqa: SLF001


def version_of(path: Path) -> int:
    """The number of the last step of the schema that was made in a file; 0 of an empty one. It changes nothing.

    Raises as `open_database`.
    """
    with _translated(path):
        _make_private_file(path)
        connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
        with contextlib.closing(connection):
            _check_kind(connection)
            return _version(connection)


@contextlib.contextmanager
def sole_user(path: Path) -> Iterator[None]:
    """Lock the store for one relay: two on one file would not wake each other's held requests.

    Raises `StoreBusy`. The system releases the lock when the process ends, also when it is killed.
    """
    if path.is_dir():
        raise StoreUnusable(f"cannot use the store {path}: it is a folder", reason=SetupReason.STATE_DAMAGED)
    lock = path.with_name(path.name + ".lock")
    try:
        descriptor = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StoreUnusable(
            f"cannot use the store {path}: {error.strerror}", reason=reason_of(error)
        ) from error
    try:
        _refuse_others(lock, os.fstat(descriptor))
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreBusy(f"another relay is using the store {path}") from error
        except OSError as error:  # such as ENOLCK of a network file system without locks
            raise StoreUnusable(f"cannot lock the store {path}: {error.strerror}") from error
        yield
    finally:
        os.close(descriptor)


def _transaction(connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    connection.execute("BEGIN IMMEDIATE")
    try:
        result = work(connection)
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
    return result


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreUnusable(
            f"cannot use the store {path}: {error.strerror}", reason=reason_of(error)
        ) from error
    except sqlite3.OperationalError as error:
        if _is_locked(error):
            raise StoreBusy(f"another process keeps the store {path} locked") from error
        if _extended(error) == sqlite3.SQLITE_IOERR_SHORT_READ:  # of what the index says is in the log
            raise StoreUnusable(_removed(_companions(path)[0]), reason=SetupReason.STATE_DAMAGED) from error
        if _is_full(error):
            why, reason = f"the disk is full ({error})", SetupReason.DISK_FULL
        else:
            why, reason = str(error), SetupReason.STATE_UNWRITABLE
        raise StoreUnusable(f"cannot use the store {path}: {why}", reason=reason) from error
    except sqlite3.DatabaseError as error:
        damaged = _code(error) == sqlite3.SQLITE_CORRUPT
        what = (
            f"the store {path} is damaged ({error})" if damaged else f"{path} is not a store of this program"
        )
        raise StoreUnusable(what, reason=SetupReason.STATE_DAMAGED) from error


def _is_locked(error: sqlite3.Error) -> bool:
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _is_full(error: sqlite3.Error) -> bool:
    """Whether the disk has no room for the file or its log, or for the log's index."""
    return _code(error) == sqlite3.SQLITE_FULL or _extended(error) == sqlite3.SQLITE_IOERR_SHMSIZE


def _is_unsynced(error: sqlite3.Error) -> bool:
    return _extended(error) == sqlite3.SQLITE_IOERR_FSYNC


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code; 0 for the module's own errors, which have none."""
    return _extended(error) & 0xFF


def _extended(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0))


def _make_private_file(path: Path) -> None:
    """Create the file with mode 0600, which SQLite gives to its WAL and index too.

    An existing file is not opened: closing it would release all locks of this process on it, SQLite's too (POSIX).
    """
    refuse_writers(path.parent)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    for each in (path, *_companions(path)):
        with contextlib.suppress(FileNotFoundError):
            _refuse_others(each, each.lstat())


def _companions(path: Path) -> list[Path]:
    """The write-ahead log and its index, which exist while a connection is open, and after a crash."""
    return [path.with_name(path.name + end) for end in ("-wal", "-shm")]


def _refuse_others(path: Path, status: os.stat_result) -> None:
    """Refuse a store or lock that is no file, or of another user, or open to others. status: of `path` itself, if a link."""
    if not stat.S_ISREG(status.st_mode):
        raise StoreUnusable(
            f"cannot use the store {path}: it is no plain file", reason=SetupReason.STATE_DAMAGED
        )
    try:
        refuse_others(status, path, 0o600)
    except SetupError as error:
        error.advice = f"`chmod 0600 {path}`, or `sudo chown` to the user that runs this"
        raise


def _identities(paths: list[str]) -> list[tuple[int, int]]:
    """The identities of the files at `paths`, device and inode. Of a `Path` they cost twice as much, several times a transaction."""
    return [(found.st_dev, found.st_ino) for found in map(os.stat, paths)]


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        _check_kind(connection)
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection) -> None:
    """Migrate the file to the newest schema: each step is one transaction, and stores its number."""
    _transaction(connection, _make_ours)
    while _version(connection) < len(MIGRATIONS):
        _transaction(connection, _step)


def _make_ours(connection: sqlite3.Connection) -> None:
    """Say whose the store is, also where it says so: a store that cannot be written to is refused by that."""
    _check_kind(connection)
    connection.execute(f"PRAGMA application_id={_APPLICATION_ID}")


def _check_kind(connection: sqlite3.Connection) -> None:
    """Refuse a database that is no store of this version."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application == _EARLIER_ID:
        raise StoreUnusable(
            "the store was made by an earlier version of this program; start with a new one, for which everybody joins again",
            reason=SetupReason.STATE_INCOMPATIBLE,
        )
    if application != _APPLICATION_ID and (application or tables):
        raise StoreUnusable("the file is another program's database", reason=SetupReason.STATE_DAMAGED)
    if _version(connection) > len(MIGRATIONS):
        raise StoreUnusable(
            "the store was made by a newer version of this program", reason=SetupReason.STATE_INCOMPATIBLE
        )


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def _step(connection: sqlite3.Connection) -> None:
    version = _version(connection)
    if version < len(MIGRATIONS):  # another process may have migrated it meanwhile
        for statement in statements(MIGRATIONS[version]):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version={version + 1}")


def statements(step: str) -> list[str]:
    """The statements of a step of the schema."""
    return [each for each in step.split(";\n") if each.strip()]


# A step that a release has is never changed, as stores have taken it: what changes later is a step of its own, below them
# (tests/test_released_schemas.py).
MIGRATIONS: Final = (
    """
    CREATE TABLE accounts (
        id TEXT PRIMARY KEY,
        name TEXT UNIQUE,                 -- of a built-in account; null once it is closed: another account may have the name
        created_at INTEGER NOT NULL,
        closed_at INTEGER,                -- null while it is open; a closed one keeps its id and nothing else
        authority INTEGER NOT NULL DEFAULT 0  -- how often a ring, a mute, a suspension or the end has changed who may do what
    ) STRICT, WITHOUT ROWID;

    -- one-time codes for founding an account: only their hashes
    CREATE TABLE account_codes (
        account TEXT PRIMARY KEY REFERENCES accounts,
        hash BLOB NOT NULL,
        expires_at INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX account_codes_by_hash ON account_codes (hash);
    CREATE INDEX account_codes_ending ON account_codes (expires_at);

    CREATE TABLE rings (
        account TEXT NOT NULL REFERENCES accounts,
        version INTEGER NOT NULL,
        hash BLOB NOT NULL,               -- of the document, for whoever only names it
        document BLOB NOT NULL,
        PRIMARY KEY (account, version)
    ) STRICT;

    -- who is in the newest ring of each account: a key belongs to one account
    CREATE TABLE members (
        name TEXT PRIMARY KEY,
        account TEXT NOT NULL REFERENCES accounts,
        role TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX members_of ON members (account);

    -- who was in a ring and is in none: it reads the rings up to the one that took it out; and of a closed account also
    -- the newcomers that waited for an answer
    CREATE TABLE former (
        name TEXT PRIMARY KEY,
        account TEXT NOT NULL REFERENCES accounts,
        version INTEGER NOT NULL,         -- of that ring
        removed_at INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX former_of ON former (account, version);
    CREATE INDEX former_ending ON former (removed_at);

    CREATE TABLE invitations (
        account TEXT NOT NULL REFERENCES accounts,
        id BLOB NOT NULL,                 -- SHA-256 of the ticket, which is not stored
        inviter TEXT NOT NULL,
        kind TEXT NOT NULL,
        expires_at INTEGER NOT NULL,
        newcomer TEXT,                    -- this and the next three: null until introduced
        body BLOB,
        signature BLOB,
        mac BLOB,
        inviter_nonce BLOB,               -- null until the inviter has checked the introduction
        newcomer_nonce BLOB,              -- null until the newcomer has revealed it
        withdrawn INTEGER NOT NULL DEFAULT 0,  -- 0 or 1
        ring_version INTEGER,             -- this and the next: null unless answered
        answer_mac BLOB,
        PRIMARY KEY (account, id)
    ) STRICT;
    CREATE INDEX invitations_by_newcomer ON invitations (newcomer, id);

    -- what of an account lives for minutes, in one value (`account_state`); a step of migration may delete all rows
    CREATE TABLE account_states (
        account TEXT PRIMARY KEY REFERENCES accounts,
        version INTEGER NOT NULL,         -- random, another one with each change
        value BLOB NOT NULL,              -- MessagePack
        changes_at REAL NOT NULL          -- when time alone changes it; minus infinity: at any moment
    ) STRICT;
    CREATE INDEX account_states_changing ON account_states (changes_at);

    -- of live requests
    CREATE TABLE envelopes (
        account TEXT NOT NULL REFERENCES accounts,
        device TEXT NOT NULL,
        request TEXT NOT NULL,            -- its id
        recipient TEXT NOT NULL,
        sealed BLOB NOT NULL,
        PRIMARY KEY (account, device, request, recipient)
    ) STRICT, WITHOUT ROWID;

    -- the newest word of each companion about the ring that it holds
    CREATE TABLE words (
        companion TEXT PRIMARY KEY,
        account TEXT NOT NULL REFERENCES accounts,
        at INTEGER NOT NULL,
        word BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX words_of ON words (account);

    -- companions that a device waits for a word of
    CREATE TABLE word_calls (
        companion TEXT PRIMARY KEY,
        account TEXT NOT NULL REFERENCES accounts
    ) STRICT, WITHOUT ROWID;

    -- how companions are woken; the addresses are secrets
    CREATE TABLE channels (
        companion TEXT NOT NULL,
        handle TEXT NOT NULL,
        account TEXT NOT NULL REFERENCES accounts,
        kind TEXT NOT NULL,
        address BLOB NOT NULL,            -- JSON
        identity BLOB NOT NULL UNIQUE,    -- a hash of the token or endpoint in its canonical form: one owner
        registered_at REAL NOT NULL,      -- by the companion, the last time
        state TEXT NOT NULL,
        stale_at REAL,                    -- since when it is stale; null otherwise
        PRIMARY KEY (companion, handle)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX channels_of ON channels (account);
    CREATE INDEX channels_stale ON channels (stale_at) WHERE stale_at IS NOT NULL;

    -- accounts whose companions are not woken: they have no channels
    CREATE TABLE poll_only (
        account TEXT PRIMARY KEY REFERENCES accounts
    ) STRICT, WITHOUT ROWID;

    -- 16 random bytes for each account that has had a channel, by which push services know its pushes as one account's
    CREATE TABLE push_tags (
        account TEXT PRIMARY KEY REFERENCES accounts,
        tag BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;

    -- pushes that are under way; a row is deleted when its outcome is known
    CREATE TABLE pushes (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        account TEXT NOT NULL REFERENCES accounts,  -- it may be closed: its companions are told so
        companion TEXT NOT NULL,
        handle TEXT NOT NULL,
        kind TEXT NOT NULL,
        address BLOB NOT NULL,            -- as the channel had it: the channel may be gone
        tag BLOB NOT NULL,
        purpose TEXT NOT NULL,
        device TEXT,                      -- this and the next: of the request; null for what is about none
        request TEXT,
        expires_at REAL NOT NULL,
        taken_until REAL NOT NULL DEFAULT 0  -- by one of several processes; 0: by the only one, or nobody
    ) STRICT;

    -- whom an account authority knows, and the account that belongs to them
    CREATE TABLE subjects (
        issuer TEXT NOT NULL,
        subject TEXT NOT NULL,
        account TEXT UNIQUE REFERENCES accounts,  -- null: none at the moment
        label TEXT,                       -- the account's name, for its operator
        suspended INTEGER NOT NULL DEFAULT 0,     -- whether an account may be founded and reset: 0 or 1
        not_before INTEGER NOT NULL DEFAULT -1,   -- a token that was made until then founds nothing
        foundings REAL NOT NULL DEFAULT 0,        -- when the rate of new accounts is whole again, Unix seconds
        PRIMARY KEY (issuer, subject)
    ) STRICT, WITHOUT ROWID;

    -- accounts that may do nothing until this is lifted
    CREATE TABLE suspensions (
        account TEXT PRIMARY KEY REFERENCES accounts,
        since INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;

    -- devices of which a companion's user has said "not me", until a companion ends that
    CREATE TABLE mutes (
        device TEXT PRIMARY KEY,
        account TEXT NOT NULL REFERENCES accounts,
        by TEXT NOT NULL,                 -- the companion
        at INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX mutes_of ON mutes (account);

    -- what the account service is to be told of devices, until it has taken that: the newest of each
    CREATE TABLE account_events (
        device TEXT PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        account TEXT NOT NULL REFERENCES accounts,
        body BLOB NOT NULL,               -- JSON, the same at each attempt
        at REAL NOT NULL,                 -- when it happened
        attempts INTEGER NOT NULL,        -- so many have begun
        due REAL NOT NULL                 -- when the next one may begin
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX account_events_of ON account_events (account);
    CREATE INDEX account_events_due ON account_events (attempts, due);
    """,
    """
    -- an account that is deleted is looked for in each table that refers to it, and invitations that have expired are all the time
    CREATE INDEX invitations_ending ON invitations (expires_at);
    CREATE INDEX pushes_of ON pushes (account);
    CREATE INDEX word_calls_of ON word_calls (account);
    """,
)

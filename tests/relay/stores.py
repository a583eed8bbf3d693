"""Where the stores of tests are: files, or with RELAY_TEST_STORE=postgresql databases of a private PostgreSQL.

With RELAY_TEST_STATES=redis beside it, or another one of `redis_servers.ENGINES`, account states are in such servers.
"""

import atexit
import os
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
from contextlib import closing
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import pytest

from companion_push.relay.postgres import PostgresStore, migrate
from companion_push.relay.redis_place import RedisPlace
from companion_push.relay.store_place import PostgresUri, StorePlace
from tests.guard import Guard
from tests.ports import reserved_port
from tests.relay import redis_servers

ON_POSTGRES: Final = os.environ.get("RELAY_TEST_STORE") == "postgresql"
STATES: Final = os.environ.get("RELAY_TEST_STATES") or None
# of what looks at account states in the store
of_rows = pytest.mark.skipif(STATES is not None, reason="account states are not in the store")
# of what only a file can suffer
of_files = pytest.mark.skipif(ON_POSTGRES, reason="the store is no file")
# of what several processes that share a database answer otherwise; `test_nodes` has those answers
of_one_process = pytest.mark.skipif(ON_POSTGRES, reason="several processes may serve on this store")


class PostgresServer:
    """A private server, in a folder of its own."""

    def __init__(
        self,
        *,
        durable: bool = False,
        folder: Path | None = None,
        settings: str = "",
        jumps: bool = False,
        primary: "PostgresServer | None" = None,
    ) -> None:
        """durable: whether a commit waits for the disk. folder: which is there, and empty. settings: further ``-c NAME=VALUE``.

        jumps: whether its clock can be set. primary: whose streaming replica it is; it has the primary's databases.
        """
        self._settings = f"-c fsync={'on' if durable else 'off'} {settings}"
        self.folder = folder or Path(tempfile.mkdtemp(prefix="postgres-"))
        self.port = reserved_port()
        self._databases: dict[Path, str] = {}
        self._as_user: list[str] = []
        if os.geteuid() == 0:  # which it refuses to run as
            shutil.chown(self.folder, "postgres", "postgres")
            self._as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        self.clock = redis_servers.needed_clock(self.folder / "clock") if jumps else None
        self._guard: Guard | None = None
        if primary is not None:
            of_primary = ("-h", "127.0.0.1", "-p", str(primary.port), "-U", "relay")
            self.call("pg_basebackup", *of_primary, "--checkpoint=fast", "--write-recovery-conf")
            self.start()
            return
        self.call("initdb", "-A", "trust", "-U", "relay", "--no-locale", "-E", "UTF8")
        self.start()
        try:
            self.do("postgres", "CREATE DATABASE migrated")
            with closing(PostgresStore(self.url("migrated")).connected()) as connection:
                migrate(connection)
        except BaseException:
            self.end()
            raise

    def call(self, program: str, *words: str) -> None:
        command = [*self._as_user, postgres_program(program), "-D", str(self.folder / "data"), *words]
        environment = None if self.clock is None else self.clock.environment
        done = subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, check=False, env=environment
        )
        assert done.returncode == 0, done.stderr + (self.folder / "log").read_text()[-2000:]

    def jump(self, ahead: float) -> None:
        """Set its clock, ahead of the right time by so many seconds, and see that it is."""
        assert self.clock is not None
        self.clock.jump(ahead)
        ((now,),) = self.do("postgres", "SELECT extract(epoch FROM clock_timestamp())::float8")
        assert abs(now - time.time() - ahead) < 60

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c max_connections=400 {self._settings}"
        self.call("pg_ctl", "-w", "-l", str(self.folder / "log"), "-o", options, "start")
        self._unguard()
        self._guard = Guard(self._postmaster, self.folder, signal.SIGQUIT)

    @property
    def _postmaster(self) -> int:
        return int((self.folder / "data/postmaster.pid").read_text().splitlines()[0])

    def stop(self, how: str = "fast") -> None:
        self.call("pg_ctl", "-w", "-m", how, "stop")
        self._unguard()

    def kill(self) -> None:
        """SIGKILL for its first process. The others end by themselves then, and it could not start before they have."""
        postmaster = self._postmaster
        others = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text()
        os.kill(postmaster, signal.SIGKILL)
        self._unguard()
        deadline = time.monotonic() + 60
        while any(is_running(each) for each in (postmaster, *map(int, others.split()))):
            assert time.monotonic() < deadline, "a server that was killed runs on"
            time.sleep(0.01)
        # which names a process, whose number may stay taken until somebody has waited for it
        (self.folder / "data/postmaster.pid").unlink()

    def kill_backend(self, database: str) -> None:
        """SIGKILL for one process that serves a connection to `database`: the server ends all others, recovers and goes on."""
        of_itself = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'"
        before = self.do("postgres", of_itself)
        (backend, *_), *_ = self.do(
            database,
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid != pg_backend_pid()",
        )
        os.kill(backend, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while self._answer(of_itself) in (before, []):
            assert time.monotonic() < deadline, "a server of which a process was killed does not recover"
            time.sleep(0.01)

    def _answer(self, statement: str) -> list[tuple[Any, ...]]:
        """What the server says; nothing while it cannot be connected to."""
        import psycopg  # noqa: PLC0415  of an extra

        try:
            return self.do("postgres", statement)
        except psycopg.OperationalError:
            return []

    def _unguard(self) -> None:
        if self._guard is not None:
            self._guard.end()
            self._guard = None

    def end(self) -> None:
        if self._guard is not None:
            self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str) -> PostgresUri:
        return PostgresUri(f"postgresql://relay@127.0.0.1:{self.port}/{database}")

    def database_for(self, path: Path) -> PostgresUri:
        """The database that stands for a file: a new one for a path that nobody has named yet."""
        if path not in self._databases:
            self._databases[path] = name = f"store{len(self._databases)}"
            self.do("postgres", f"CREATE DATABASE {name} TEMPLATE migrated")
        return self.url(self._databases[path])

    def do(self, database: str, statement: str) -> list[tuple[Any, ...]]:
        return query(self.url(database), statement)


def is_running(number: int) -> bool:
    """Whether there is a process of this number which has not ended."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def postgres_program(name: str) -> str:
    """PostgreSQL's own programs are not in the PATH on Debian."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4]))
    return str(found[-1]) if found else name


def is_installed() -> bool:
    """Whether PostgreSQL is there."""
    return shutil.which(postgres_program("initdb")) is not None


def postgres() -> PostgresServer:
    """The server of this process. The test is left out where PostgreSQL is not installed, unless all are asked for."""
    if not is_installed() and not ON_POSTGRES:
        pytest.skip("PostgreSQL is not installed: make test-stores")
    return _server()


@cache
def _server() -> PostgresServer:
    server = PostgresServer()
    atexit.register(server.end)
    return server


def place_of(path: Path) -> StorePlace:
    """Where the store is that a test keeps at `path`."""
    return postgres().database_for(path) if ON_POSTGRES else path


def states_of(path: Path) -> RedisPlace | None:
    """Where the account states are of a store at `path`; None: in the store."""
    if STATES is None:
        return None
    return redis_servers.place(STATES, prefix=f"test-{sha256(str(path).encode()).hexdigest()[:16]}")


def query(place: StorePlace, statement: str) -> list[tuple[Any, ...]]:
    """What another program reads, or does."""
    if isinstance(place, Path):
        with closing(sqlite3.connect(place)) as other:
            return other.execute(statement).fetchall()
    import psycopg  # noqa: PLC0415  of an extra

    with psycopg.connect(place.uri, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []

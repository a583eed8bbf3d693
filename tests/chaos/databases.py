"""The databases of a chaotic run, which relays call through junctions: PostgreSQL, and Redis for account states."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from companion_push.relay.store_place import PostgresUri
from tests.chaos.junction import family
from tests.chaos.plan import Deployment
from tests.relay.redis_servers import RedisServer
from tests.relay.redis_servers import program as redis_program
from tests.relay.stores import PostgresServer, is_installed, postgres_program, query

SMALL: Final = 160  # MiB of PostgreSQL's file system: an empty server has 60, and its log up to 32 more
END_SECONDS: Final = 30.0  # until the processes of a killed server are gone, even on a busy machine


class Database(Protocol):
    """A server that the relays call."""

    port: int

    @property
    def pid(self) -> int | None:
        """Its first process, None where it does not run."""

    def start(self) -> None:
        """Start it again, with what it has kept."""

    def kill(self) -> None:
        """End all of it without notice."""

    def end(self) -> None:
        """End it for good."""


def missing(deployment: Deployment) -> str | None:
    """What a deployment needs that is not installed, for people; None when all is there."""
    there: dict[str, Callable[[], bool]] = {
        "postgresql": is_installed,
        "redis": lambda: redis_program("redis") is not None,
    }
    lacks = [name for name in deployment.databases if not there[name]()]
    return f"{' and '.join(lacks)} not installed: make test-stores" if lacks else None


class Postgres(PostgresServer):
    """PostgreSQL with the relays' database."""

    def __init__(self, folder: Path) -> None:
        super().__init__(durable=True, folder=folder, settings="-c max_wal_size=32MB")
        self.place = self.database_for(Path("relay"))

    def reached_at(self, port: int) -> PostgresUri:
        """The relays' database, through a junction."""
        return PostgresUri(self.place.uri.replace(f":{self.port}/", f":{port}/"))

    @property
    def pid(self) -> int | None:
        with suppress(OSError, ValueError, IndexError):
            found = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
            return found if _runs(found) else None
        return None

    def kill(self) -> None:
        first = self.pid
        if first is not None:
            with suppress(ProcessLookupError):
                os.kill(first, signal.SIGSTOP)  # so that it starts no process that is not killed with it
            _until(lambda: _state(first) in "TZX")
            killed = family(first)
            for each in killed:
                with suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
            # the next server takes a first process that is not yet reaped for one that runs
            _until(lambda: _state(first) == "X" and not any(map(_runs, killed)))

    def end(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def unfinished(self) -> int:
        """How many transactions are open of which nobody hears."""
        (row,) = query(
            self.place, "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
        )
        return int(row[0])

    def copy_to(self, file: Path) -> None:
        """Copy the relays' database, as an operator does."""
        _ran("pg_dump", "--format=custom", f"--file={file}", f"--dbname={self.place}")

    def put_back(self, file: Path) -> None:
        """Restore it from a copy, as an operator does; no relay is running."""
        name = self.place.uri.rpartition("/")[2]
        self.do("postgres", f"DROP DATABASE {name} WITH (FORCE)")
        self.do("postgres", f"CREATE DATABASE {name} TEMPLATE template0")
        _ran("pg_restore", "--exit-on-error", f"--dbname={self.place}", str(file))


class Redis(RedisServer):
    """Redis, whose every answer is on its disk."""

    def __init__(self) -> None:
        super().__init__("redis", "appendfsync always")

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process.poll() is None else None

    def empty(self) -> None:
        """Forget all; it is not running."""
        shutil.rmtree(self.folder / "appendonlydir", ignore_errors=True)


def _ran(program: str, *words: str) -> None:
    done = subprocess.run([postgres_program(program), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _runs(pid: int) -> bool:
    """Whether a process runs, or is stopped; one that has ended and is not yet reaped does not."""
    return _state(pid) not in "ZX"


def _state(pid: int) -> str:
    """The state of a process, as ps has it; X when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def _until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + END_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, "a killed server does not end"
        time.sleep(0.02)

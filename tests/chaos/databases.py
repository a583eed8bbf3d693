"""The databases of a chaotic run, which relays call through junctions: PostgreSQL, and Redis or a Cluster of Valkey for account states."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

import redis

from companion_push.relay.redis_states import RedisStates
from companion_push.relay.store_place import PostgresUri
from tests.chaos.junction import family
from tests.chaos.plan import Deployment
from tests.jumping_clock import is_possible
from tests.relay.redis_servers import RedisCluster, RedisServer
from tests.relay.redis_servers import program as redis_program
from tests.relay.stores import PostgresServer, is_installed, postgres_program, query

SMALL: Final = 160  # MiB of PostgreSQL's file system: an empty server has 60, and its log up to 32 more
END_SECONDS: Final = 30.0  # until the processes of a killed server are gone, even on a busy machine


class Database(Protocol):
    """A server that the relays call, or several that are one."""

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
        "postgresql": lambda: is_installed() and is_possible(),
        "redis": lambda: redis_program("redis") is not None,
        "valkey": lambda: redis_program("valkey") is not None and is_possible(),
    }
    lacks = [name for name in deployment.databases if not there[name]()]
    return f"{' and '.join(lacks)} not installed: make test-stores" if lacks else None


class Postgres(PostgresServer):
    """PostgreSQL with the relays' database, and one for a relying party."""

    def __init__(self, folder: Path) -> None:
        super().__init__(durable=True, folder=folder, settings="-c max_wal_size=32MB", jumps=True)
        self.place = self.database_for(Path("relay"))
        self.do("postgres", "CREATE DATABASE passkeys")
        self.passkeys = self.url("passkeys")

    def reached_at(self, port: int, place: PostgresUri) -> str:
        """The URI of one of its databases, through a junction."""
        return place.uri.replace(f":{self.port}/", f":{port}/")

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
        self._unguard()

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


class ValkeyCluster(RedisCluster):
    """Valkey, three primaries with a replica of each. What is killed or stopped is the primary that serves an account."""

    def __init__(self, announced: Sequence[int]) -> None:
        """announced: the ports at which the nodes are reached."""
        super().__init__("valkey", "appendfsync always", announced=announced, jumps=True)
        self._aimed = self.nodes[0]

    def aim(self, account: str) -> None:
        """Let the next fault be of the primary that serves an account."""
        key, _, _ = RedisStates(self.place())._keys(account)
        _until(lambda: any(self._aim(node, key) for node in self.running()))

    def _aim(self, node: RedisServer, key: str) -> bool:
        with suppress(redis.RedisError):
            if node.do("INFO", "replication", socket_timeout=1.0)["role"] == "master":
                node.do("GET", key, socket_timeout=1.0)  # refused where others serve it
                self._aimed = node
                return True
        return False

    @property
    def pid(self) -> int | None:
        return self.pids.get(self.nodes.index(self._aimed))

    @property
    def pids(self) -> dict[int, int]:
        """The processes of the nodes that run, by their numbers."""
        running = self.running()
        return {at: node._process.pid for at, node in enumerate(self.nodes) if node in running}

    def kill(self) -> None:
        self._aimed.kill()

    def start(self) -> None:
        self._aimed.start()
        self.recover()

    def jump(self, ahead: float) -> None:
        self._aimed.jump(ahead)

    def recover(self) -> None:
        """Wait until somebody else could take over again."""

        def is_whole() -> bool:
            with suppress(redis.RedisError):
                return self.is_whole()
            return False

        _until(is_whole)


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

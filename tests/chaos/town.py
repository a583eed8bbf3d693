"""The programs of a chaotic run: servers behind junctions, homes with companions and phones, stores on small file systems, clocks that jump."""

import asyncio
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from programs import Program, ProgramFailed, event
from world import World

from headless_passkey.errors import ExitStatus
from headless_passkey.trust.ring import Role
from tests.chaos import databases
from tests.chaos.databases import Database, Postgres, Redis, ValkeyCluster
from tests.chaos.junction import Junction, descriptors, family, sockets
from tests.chaos.plan import COMPANIONS, HOMES, LINKED, SERVERS, STAYS, WORKER, Deployment, Fault
from tests.end_to_end.household import Home

STORE_SIZE: Final = 16  # MiB of the file system of a store
CLOCKS: Final = Path(__file__).parent / "jumping_clock"
SCRATCH: Final = "temporary files"  # a folder of the run's
TOLD: Final = 60.0  # seconds until a program has said what tasks it has, even on a busy machine
DEVICE: Final = Path(__file__).parent / "device.py"
TIMEOUT: Final = 12  # seconds that a sign-in may take
SMALL: Final = frozenset({"relay", "relying party"})  # servers whose store is on a small file system
WORKERS: Final = 2  # of the second relay, and of the relying party where it is on PostgreSQL
NODES: Final = tuple(f"valkey {number}" for number in range(6))  # of the Cluster
SERVED: Final = 60.0  # seconds until a relay has begun whose database is back, even on a busy machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A line of JSON that a program has said."""

    who: str  # by its name in the plan
    said: dict[str, Any]

    @property
    def home(self) -> int | None:
        """The home that it belongs to, None for a server."""
        place = self.who.partition(" ")[2]
        return int(place[0]) if place[:1].isdigit() else None


@dataclass
class Town(World):
    """All programs of a run."""

    junctions: dict[str, Junction] = field(default_factory=dict)  # by server
    homes: list[Home] = field(default_factory=list)
    running: dict[str, Program] = field(
        default_factory=dict
    )  # companions, phones and devices that stay, by their names in the plan
    members: dict[str, str] = field(
        default_factory=dict
    )  # who is called so in the ring now, by names in the plan
    heard: list[Heard] = field(default_factory=list)
    ether: str = ""  # the radio, past the junction, in bumble's notation
    news: asyncio.Event = field(default_factory=asyncio.Event)  # there is more in `heard`
    at_birth: dict[str, int] = field(default_factory=dict)  # sockets of a server before anybody called
    deployment: Deployment = Deployment.FILE
    databases: dict[str, Database] = field(default_factory=dict)  # that the relays call, by name
    accounts: list[str] = field(default_factory=list)  # the ids of the homes' accounts
    has_small: bool = False  # whether the stores are on file systems that can be filled

    @classmethod
    @asynccontextmanager
    async def found(
        cls,
        folder: Path,
        deployment: Deployment,
        *,
        marker: tuple[str, str],
        on_line: Callable[[str, str], None],
    ) -> AsyncIterator["Town"]:
        """Start the servers and the homes, whose passkeys are registered. marker: stands in the environment of every program."""
        towns: list[Town] = []
        programs: list[Program] = []
        begun: dict[str, Database] = {}

        def pids() -> dict[int, str]:
            names = {each.process.pid: each.name for each in programs}
            valkey = begun.get("valkey")
            if isinstance(valkey, ValkeyCluster):  # replicas call their primaries
                names |= {pid: NODES[number] for number, pid in valkey.pids.items()}
            return {pid: names[first] for pid, first in family(*names).items()}

        async with AsyncExitStack() as stack:
            small = [stack.enter_context(small_file_system(folder / store)) for store in SMALL]
            names = [*SERVERS]
            for each in deployment.databases:
                names += NODES if each == "valkey" else (each,)
            junctions = {name: await stack.enter_async_context(Junction.open(pids)) for name in names}
            junctions["radio"].hci = True
            url = {name: f"https://localhost:{each.port}" for name, each in junctions.items()}
            place = passkeys = None
            states: tuple[str, ...] = ()
            if "postgresql" in deployment.databases:
                folder_of_postgres, is_small = stack.enter_context(postgres_folder())
                small.append(is_small)
                begun["postgresql"] = postgres = await asyncio.to_thread(Postgres, folder_of_postgres)
                stack.callback(postgres.end)
                junctions["postgresql"].targets = (postgres.port,)
                place, passkeys = (
                    postgres.reached_at(junctions["postgresql"].port, each)
                    for each in (postgres.place, postgres.passkeys)
                )
            if "redis" in deployment.databases:
                begun["redis"] = redis = await asyncio.to_thread(Redis)
                stack.callback(redis.end)
                junctions["redis"].targets = (redis.port,)
                states = ("--states", f"redis://127.0.0.1:{junctions['redis'].port}")
            if "valkey" in deployment.databases:
                ports = [junctions[each].port for each in NODES]
                begun["valkey"] = valkey = await asyncio.to_thread(ValkeyCluster, ports)
                stack.callback(valkey.end)
                for node, server in zip(NODES, valkey.nodes, strict=True):
                    junctions[node].targets = (server.port,)
                await asyncio.to_thread(valkey.meet)
                states = ("--states", "redis://" + ",".join(f"127.0.0.1:{port}" for port in ports))
            on_postgres = ("--store", passkeys, "--workers", str(WORKERS)) if passkeys else ()
            is_there = "relying party" in deployment.calls

            def line(name: str, text: str) -> None:
                on_line(name, text)
                for town in towns:
                    town.hear(name, text)

            (folder / "clocks").mkdir()
            (folder / SCRATCH).mkdir()
            town = await stack.enter_async_context(
                cls.start(
                    folder,
                    on_line=line,
                    relay=("companion-push", "relay", "--public-url", url["relay"], *states),
                    relying_party=("--public-url", url["relying party"], *(on_postgres if is_there else ())),
                    environment={
                        marker[0]: marker[1],
                        "PYTHONPATH": str(CLOCKS),
                        "TMPDIR": str(folder / SCRATCH),
                    },
                    database=place,
                    programs=programs,
                )
            )
            assert isinstance(town, Town)
            towns.append(town)
            town.junctions, town.has_small = junctions, all(small)
            town.deployment, town.databases = deployment, begun
            for name in deployment.relays[1:]:
                _, words = town.servers["relay"]
                await town.serve(name, *words[:-2], "--workers", str(WORKERS), tls=False)
            for name in SERVERS[:-1]:
                served = deployment.relays if name == "relay" else (name,)
                junctions[name].targets = tuple(map(town.port, served))
                town.at_birth |= {each: town.sockets(each) for each in served}
            town.at_birth["radio"] = town.sockets("radio")
            junctions["radio"].targets = (int(town.radio.rpartition(":")[2]),)
            town.ether = town.radio.partition(":")[2]
            town.relay, town.relying_party = url["relay"], url["relying party"]
            town.tunnel = (
                f"{town.tunnel.partition('=')[0]}=wss://localhost:{junctions['tunnel service'].port}"
            )
            town.radio = f"bumble:tcp-client:127.0.0.1:{junctions['radio'].port}"
            for number in HOMES:
                await town._settle(number)
            yield town

    def processes(self, target: str) -> list[int]:
        """The processes of a program or a database that runs, the first one first; of a worker, its own."""
        if target == WORKER:
            return self.processes(self.deployment.relays[-1])[1:2]
        program = self.program(target)
        if target in self.databases:
            pid = self.databases[target].pid
        elif program is not None and program.process.returncode is None:
            pid = program.process.pid
        else:
            pid = None
        return [] if pid is None else [*family(pid)]

    def before(self, server: str) -> list[Junction]:
        """The junctions before a server: of a Cluster one before each node."""
        return [self.junctions[each] for each in (NODES if server == "valkey" else (server,))]

    def aim(self, fault: Fault) -> None:
        """Let a fault of the Cluster be of the primary that serves its home."""
        valkey = self.databases.get(fault.target)
        if isinstance(valkey, ValkeyCluster):
            valkey.aim(self.accounts[fault.home])

    def program(self, target: str) -> Program | None:
        """The program that a plan means, None where it does not run."""
        if target in self.servers:
            return self.servers[target][0]
        if target in self.running:
            return self.running[target]
        return next((each for each in self.programs if each.name == target), None)

    def sockets(self, server: str) -> int:
        """How many sockets a server has open, but for those to databases, which it keeps for the next transaction."""
        to_databases = {each.port for name in self.databases for each in self.before(name)}
        return sockets(*self.processes(server), but_to=to_databases)

    async def use(self, name: str) -> list[Counter[str]]:
        """The tasks and open files of each process of a program; but for connections, which are counted elsewhere."""
        return [await self._use(name, each) for each in self.processes(name)]

    async def _use(self, name: str, pid: int) -> Counter[str]:
        at = len(self.heard)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGUSR2)
        deadline = time.monotonic() + TOLD
        while not (said := [each.said for each in self.heard[at:] if each.said.get("process") == pid]):
            if time.monotonic() > deadline:
                raise ProgramFailed(f"process {pid} of the {name} does not say what tasks it has")
            await asyncio.sleep(0.01)
        # aiohttp has tasks for each connection
        used = Counter(f"task {each}" for each in said[0]["tasks"] if not each.startswith("RequestHandler."))
        used["open files"] = sum(not each.startswith("socket:") for each in descriptors(pid))
        return used

    async def restart(self, name: str) -> None:
        """Start an ended server again; a relay whose database is not back again and again, as a service manager does."""
        deadline = time.monotonic() + SERVED
        while True:
            try:
                return await super().restart(name)
            except ProgramFailed:
                status = self.servers[name][0].process.returncode
                if not self.databases or status != ExitStatus.TRANSPORT or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.5)

    async def _settle(self, number: int) -> None:
        """Found a home, register its passkey, and start its companions and its phone."""
        companions = tuple(f"companion {number}.{each}" for each in range(COMPANIONS[number]))
        home = Home(self, f"home {number}", companions, (f"device {number}",))
        self.homes.append(home)
        self.members |= {name: name for name in (*companions, home.hub)}
        await home.found()
        self.accounts.append(home.identity(home.phone).account)
        for name in companions:
            await self.attend(name)
        linked = ("--link",) if number == LINKED else ()
        status, _ = await self.ceremony(home.hub, "register", "--user", user_of(number), *linked)
        assert status == 0, f"home {number} has no passkey"
        if STAYS[number]:
            await self.attend(home.hub)
        if linked:
            await self.attend(f"phone {number}")

    async def run(self, name: str, *command: str | Path) -> Program:
        """Start a program with a clock of its own."""
        program = await Program.start(
            name,
            *command,
            "--json",
            on_line=self.on_line,
            environment={**self.environment, "JUMPING_CLOCK": str(self._clock(name))},
        )
        self.programs.append(program)
        return program

    async def attend(self, who: str) -> None:
        """Start a companion, a phone or a device that stays, by its name in the plan."""
        kind, _, place = who.partition(" ")
        home = self.homes[int(place[0])]
        if kind == "phone":
            phone = await self.run(
                who, "companion-push", "phone", "--linked", "--links", self.links(home.phone),
                "--credentials", self._passkeys(home), "--radio", self.radio, "--tunnel", self.tunnel,
                "--uv", "accept", *self.trust,
            )  # fmt: skip
            await phone.stage("phone-waiting")
            self.running[who] = phone
        elif kind == "device":
            device = await self.run(
                who, sys.executable, DEVICE, "--state", self.state(who), "--rp", self.relying_party,
                "--radio", self.radio, "--tunnel", self.tunnel, *self.trust,
            )  # fmt: skip
            await device.stage("waiting")
            self.running[who] = device
        else:
            links = ("--links", self.links(home.phone)) if self.homes.index(home) == LINKED else ()
            self.running[who] = await self.companion(
                self.members[who], "--credentials", self._passkeys(home), *links
            )

    def _passkeys(self, home: Home) -> Path:
        """The passkeys of a home's phones, as if they were synced."""
        return self.folder / f"{home.account}.json"

    def dismiss(self, program: Program) -> None:
        """Forget a program that has ended."""
        if program in self.programs:
            self.programs.remove(program)

    async def move_in(self, home: Home, who: str) -> None:
        """Let a new companion in for one that was removed."""
        old = self.members[who]
        fresh = f"{old}'"
        self.members[who] = fresh
        others = tuple(fresh if each == old else each for each in home.companions)
        self.homes[self.homes.index(home)] = new = replace(home, companions=others)
        shutil.rmtree(self.state(old), ignore_errors=True)
        await new.let_in(Role.COMPANION, fresh)
        await self.attend(who)

    @property
    def relay_store(self) -> Path:
        return self.folder / "relay" / "relay.db"

    @property
    def relying_party_store(self) -> Path:
        return self.folder / "relying party" / "relying-party.db"

    def hear(self, name: str, text: str) -> None:
        """Keep what a program says."""
        said = event(text)
        if said is not None:
            who = next((plain for plain, member in self.members.items() if member == name), name)
            self.heard.append(Heard(who=who, said=said))
            self.news.set()

    def _clock(self, name: str) -> Path:
        file = self.folder / "clocks" / name
        if not file.exists():
            file.write_bytes(bytes(9))
        return file

    def jump(self, name: str, ahead: float) -> None:
        """Put a program's clock ahead of the right time by so many seconds."""
        with self._clock(name).open("r+b") as file:
            file.write(struct.pack("=d", ahead))

    def has_read_wrong_clock(self, name: str) -> bool:
        """Whether a program has read its clock since it was last called so, while that was wrong."""
        with self._clock(name).open("r+b") as file:
            file.seek(8)
            has_read = file.read(1) == b"\1"
            file.seek(8)
            file.write(b"\0")
        return has_read


def user_of(number: int) -> str:
    """The name of a home's user at the relying party."""
    return f"ada {number}"


@contextmanager
def postgres_folder() -> Iterator[tuple[Path, bool]]:
    """A folder that the user of PostgreSQL can reach, on a file system of its own; yields whether that is small, too."""
    outer = Path(tempfile.mkdtemp(prefix="chaos-postgres-"))
    try:
        outer.chmod(0o711)
        with small_file_system(outer / "server", size=databases.SMALL) as is_small:
            yield outer / "server", is_small
    finally:
        shutil.rmtree(outer, ignore_errors=True)


@contextmanager
def small_file_system(folder: Path, *, size: int = STORE_SIZE) -> Iterator[bool]:
    """Make `folder` a small file system of its own; yields whether that is allowed here, else it is a folder like others. size: MiB."""
    folder.mkdir(mode=0o700)
    mounting = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}m,mode=0700", "tmpfs", folder],
        capture_output=True,
        check=False,
    )
    try:
        yield mounting.returncode == 0
    finally:
        if mounting.returncode == 0:
            subprocess.run(["umount", "--lazy", folder], check=False)

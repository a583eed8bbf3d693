"""What a waiting companion costs the relay, and how soon a request reaches it: against a bare server, and by a stream.

    make bench                                                        with the other benchmarks
    PYTHONPATH=examples:. python benchmarks/relay.py                  measure and print
    PYTHONPATH=examples:. python benchmarks/relay.py --waiting 300    fewer that wait

The relay runs as the program, with its store on the disk; all companions are connections of this process. Each has an account
of its own with one device. What is compared runs in turns in one run, so that a disturbance affects both; the memory is
measured on a server of its own. The bare server (`bare_server.py`) gets the same calls, and does nothing of what a relay does.
"""

import argparse
import asyncio
import gc
import json
import os
import shutil
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Final

import aiohttp
import core
from bare_server import NAME_HEADER
from certificates import Certificate, make_certificate
from measure import HEADINGS, Row, processor_seconds, shown, table

from companion_push.relay import accounts
from companion_push.relay.database import open_database
from headless_passkey.net.proof import NONCE_HEADER, PROOF_HEADER, make_proof
from program_parts.base64url import base64url
from tests.trust.people import Person, companion, device, found, grow

HEADING: Final = "# What a waiting companion costs the relay"
WAITING: Final = 3000
ENCRYPTED: Final = 500  # companions that wait under TLS
FEW: Final = 300  # that wait where nothing but their own cost is asked for
ROUNDS: Final = 60
IDLE: Final = 50.0  # seconds: two long polls, and two heartbeats and a half
BLOCKS: Final = 20  # turns of each server
IN_BLOCK: Final = 20  # submits, or polls, of one turn
AT_ONCE: Final = 32  # devices that submit at the same time
EACH: Final = 8  # submits of each of them in one turn
FORMER: Final = "dab91d3"  # the last commit whose transactions were a thread's
SEALED: Final = base64url(bytes(700))
AIM_SUBMIT: Final = 2.0  # times the bare server
AIM_POLL: Final = 3.0
AIM_FORMER: Final = 2.0  # times the durable submits of `FORMER`
AIM_MEMORY: Final = 1.0  # KiB above the bare server
AIM_TLS: Final = 60.0  # KiB


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Of one way to wait."""

    memory: float  # bytes of the relay for each that waits
    processor: float  # seconds of the relay in a minute, for each that waits while nothing happens


class Server:
    """A server that runs as a program, and its callers."""

    def __init__(self, url: str, process: int, http: aiohttp.ClientSession) -> None:
        self.url, self._process, self.http = url, process, http
        self._nonce = ""

    def head(self, person: Person, method: str, path: str) -> dict[str, str]:
        """The headers of a call: the bare server gets the same, and reads no proof."""
        return {**self.proof(person, method, path), NAME_HEADER: person.name}

    def proof(self, person: Person, method: str, path: str) -> dict[str, str]:
        url = self.url + path
        return {
            PROOF_HEADER: make_proof(
                person.key, method=method, url=url, now=time.time(), nonce=self._nonce or None
            )
        }

    async def call(
        self, person: Person, method: str, path: str, body: object = None, query: str = ""
    ) -> bytes:
        for _ in range(2):
            head = self.head(person, method, path)
            async with self.http.request(method, self.url + path + query, headers=head, json=body) as answer:
                self._nonce = answer.headers.get(NONCE_HEADER, self._nonce)
                content = await answer.read()
                if answer.status < 400:
                    return content
        raise RuntimeError(f"{method} {path}: {answer.status} {content!r}")

    def prepared(self, phone: Person, frame: Person) -> tuple[str, dict[str, str], dict[str, object]]:
        """The URL, headers and body of a submit, so that nothing of it is made while the time is taken."""
        path = f"/v1/requests/{base64url(os.urandom(16))}"
        body = {"expires_in": 300, "envelopes": [{"to": phone.name, "sealed": SEALED}]}
        return self.url + path, self.head(frame, "PUT", path), body

    async def put_all(self, calls: Sequence[tuple[str, dict[str, str], dict[str, object]]]) -> None:
        """Make these calls one after the other."""
        for url, head, body in calls:
            async with self.http.put(url, headers=head, json=body) as answer:
                if answer.status != 201:
                    raise RuntimeError(f"{answer.status} {await answer.read()!r}")

    def memory(self) -> int:
        """Bytes of the process."""
        return int(Path(f"/proc/{self._process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def processor(self) -> float:
        """Seconds of the process, all its threads."""
        return processor_seconds(self._process)


class Waiting:
    """A companion that waits, and its device."""

    def __init__(self, relay: Server, phone: Person, frame: Person) -> None:
        self.relay, self.phone, self.frame = relay, phone, frame
        self.arrived = asyncio.Event()

    async def streams(self, begun: asyncio.Semaphore) -> None:
        path = "/v1/inbox/stream"
        head = self.relay.head(self.phone, "GET", path)
        async with self.relay.http.get(self.relay.url + path, headers=head) as answer:
            if answer.status != 200:  # it would wait for nothing, and cost nothing
                raise RuntimeError(f"{answer.status} {await answer.read()!r}")
            begun.release()
            async for line in answer.content:
                if line.startswith(b"data: ") and b'"sealed"' in line:
                    self.arrived.set()

    async def polls(self, begun: asyncio.Semaphore) -> None:
        cursor = json.loads(await self.relay.call(self.phone, "GET", "/v1/inbox"))["cursor"]
        begun.release()
        while True:
            listed = await self.relay.call(self.phone, "GET", "/v1/inbox", query=f"?cursor={cursor}&wait=25")
            cursor = json.loads(listed)["cursor"]
            if b'"sealed"' in listed:
                self.arrived.set()

    async def submit(self) -> float:
        """Seconds from submitting a request until the companion has it."""
        name = base64url(os.urandom(16))
        self.arrived.clear()
        body = {"expires_in": 300, "envelopes": [{"to": self.phone.name, "sealed": SEALED}]}
        began = time.perf_counter()
        submitting = asyncio.create_task(self.relay.call(self.frame, "PUT", f"/v1/requests/{name}", body))
        async with asyncio.timeout(60):
            await self.arrived.wait()
        took = time.perf_counter() - began
        await submitting
        await self.relay.call(self.frame, "POST", f"/v1/requests/{name}/events", {"event": "cancelled"})
        return took


People = Sequence[tuple[Person, Person]]  # a companion and the device of its account


async def populated(store: Path, number: int) -> People:
    """Make a store with so many accounts, each with one companion and one device."""
    people = [(companion(), device()) for _ in range(number)]
    async with open_database(store) as database:
        for which, (phone, frame) in enumerate(people):
            await database.transact(partial(_add, phone=phone, frame=frame, which=which))
    return people


def _add(db: sqlite3.Connection, *, phone: Person, frame: Person, which: int) -> None:
    now, name = time.time(), f"account {which}"
    added = accounts.add_account(db, name=name, now=now, expires_at=int(now) + 3600)
    assert added is not None
    account, code = added
    ring = found(phone, account=account, account_name=name, now=now)
    accounts.found(db, caller=phone.name, code=code, document=ring.document, now=now)
    member = accounts.membership(db, phone.name)
    assert member is not None
    accounts.append_ring(db, member, grow(ring, phone, phone, frame, now=now).document, now=now)


class Place:
    """A store with accounts, of which each relay gets a copy."""

    def __init__(self, folder: Path, people: People) -> None:
        self._folder, self.people, self._copies = folder, people, 0

    @property
    def store(self) -> Path:
        return self._folder / "accounts.sqlite3"

    @asynccontextmanager
    async def relay(
        self, *, loop: str = "asyncio", certificate: Certificate | None = None, code: Path = core.ROOT
    ) -> AsyncIterator[Server]:
        """Run the relay on a copy. code: the folder of its version."""
        self._copies += 1
        store = self._folder / f"copy {self._copies}.sqlite3"
        if code == core.ROOT:
            shutil.copy(self.store, store)
        else:
            await _store_of(code, store, self.store)
        words = [
            *("-m", "companion_push", "relay", "--listen", "127.0.0.1:0", "--store", str(store)),
            *("--held-per-address", "0", "--connections", "8192", "--connections-per-address", "8192"),
            *("--log-level", "warning", "--no-pauses", "--event-loop", loop),
            *("--requests-per-minute", "1000000", "--requests-per-day", "1000000"),
            *("--account-requests-per-day", "1000000"),
        ]
        if certificate is not None:
            words += ["--cert", str(certificate.cert), "--key", str(certificate.key)]
        tls = None if certificate is None else certificate.client_context()
        async with _running(words, code, tls) as server:
            await server.call(self.people[0][0], "GET", "/v1/inbox")  # which brings the nonce
            yield server

    @asynccontextmanager
    async def bare(self) -> AsyncIterator[Server]:
        """Run the bare server."""
        async with _running([str(Path(__file__).with_name("bare_server.py"))], core.ROOT, None) as server:
            yield server

    def waiting(self, server: Server, number: int) -> list[Waiting]:
        """The first so many companions, at `server`."""
        return [Waiting(server, phone, frame) for phone, frame in self.people[:number]]


async def _store_of(code: Path, store: Path, accounts: Path) -> None:
    """Make a store as another version does, and put the accounts of this version's store into it."""
    words = ["-m", "companion_push", "relay", "--listen", "127.0.0.1:0", "--store", str(store)]
    async with _running(words, code, None):
        pass
    with closing(sqlite3.connect(store)) as copy:
        copy.execute("ATTACH ? AS these", (str(accounts),))
        copy.execute("INSERT INTO accounts SELECT id, name, created_at, closed_at FROM these.accounts")
        copy.execute("INSERT INTO rings SELECT account, version, document FROM these.rings")
        copy.execute("INSERT INTO members SELECT * FROM these.members")
        copy.commit()


@asynccontextmanager
async def placed(folder: Path, number: int) -> AsyncIterator[Place]:
    """A place with so many accounts."""
    yield Place(folder, await populated(folder / "accounts.sqlite3", number))


@asynccontextmanager
async def _running(words: list[str], code: Path, tls: ssl.SSLContext | None) -> AsyncIterator[Server]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *words,
        cwd=code,
        env={**os.environ, "PYTHONPATH": str(code)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        url = (await process.stdout.readline()).decode().strip()
        connector = aiohttp.TCPConnector(limit=0, ssl=tls or True)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
            yield Server(url, process.pid, http)
    finally:
        process.terminate()
        await process.wait()


async def memory(server: Server, companions: Sequence[Waiting], *, streams: bool = False) -> float:
    """The bytes of the server for each of these that waits."""
    before = server.memory()
    async with _waiting(companions, streams=streams):
        return (server.memory() - before) / len(companions)


async def costs(place: Place, *, streams: bool, number: int, idle: float) -> Costs:
    """Have `number` companions wait while nothing happens, for `idle` seconds."""
    async with place.relay() as server:
        before = server.memory()
        async with _waiting(place.waiting(server, number), streams=streams):
            memory = (server.memory() - before) / number
            used = server.processor()
            await asyncio.sleep(idle)
            return Costs(memory=memory, processor=(server.processor() - used) / number * 60 / idle)


async def times(place: Place, *, number: int, rounds: int) -> list[tuple[float, float]]:
    """The seconds from submitting until a companion has it, by a stream and by a long poll, in turns."""
    async with place.relay() as server:
        companions, half = place.waiting(server, number), number // 2
        async with _waiting(companions[:half], streams=True), _waiting(companions[half:], streams=False):
            gc.collect()
            return [
                (await companions[turn % half].submit(), await companions[half + turn % half].submit())
                for turn in range(rounds)
            ]


async def submits(
    place: Place, *, number: int, blocks: int, in_block: int
) -> tuple[list[float], list[float]]:
    """The seconds from submitting until a companion that polls has it, at the relay and at the bare server, in turns."""
    async with place.relay() as server, place.bare() as bare:
        ours, theirs = place.waiting(server, number), place.waiting(bare, number)
        async with _waiting(ours, streams=False), _waiting(theirs, streams=False):
            gc.collect()
            taken: tuple[list[float], list[float]] = ([], [])
            for turn in range(blocks * in_block * 2):
                block, which = divmod(turn, in_block)
                side = block % 2
                companions = (ours, theirs)[side]
                taken[side].append(await companions[(block // 2 * in_block + which) % number].submit())
            return taken


async def polls(place: Place, *, blocks: int, in_block: int) -> list[tuple[float, float]]:
    """The processor seconds of an inbox read that finds nothing, at the relay and at the bare server, in turns."""

    async def block(server: Server) -> float:
        phone, _ = place.people[0]
        await server.call(phone, "GET", "/v1/inbox")
        before = server.processor()
        for _ in range(in_block):
            await server.call(phone, "GET", "/v1/inbox")
        return (server.processor() - before) / in_block

    async with place.relay() as server, place.bare() as bare:
        return [(await block(server), await block(bare)) for _ in range(blocks)]


async def durable_submits(
    place: Place, former: Path, *, at_once: int, each: int, blocks: int
) -> list[tuple[float, float]]:
    """The seconds of a durable submit while so many devices submit, of this version and of the one in `former`, in turns.

    A device submits once: nothing is superseded, and no limit comes near.
    """
    async with place.relay() as server, place.relay(code=former) as other:

        async def block(relay: Server, people: People) -> float:
            calls = [relay.prepared(phone, frame) for phone, frame in people]
            queues = [calls[first::at_once] for first in range(at_once)]
            began = time.perf_counter()
            await asyncio.gather(*map(relay.put_all, queues))
            return (time.perf_counter() - began) / len(people)

        size = at_once * each
        return [
            (
                await block(server, place.people[turn * size : (turn + 1) * size]),
                await block(other, place.people[turn * size : (turn + 1) * size]),
            )
            for turn in range(blocks)
        ]


def former_version(folder: Path) -> Path | None:
    """Unpack the programs of `FORMER` into `folder`; None where the history is not at hand."""
    git, tar = shutil.which("git"), shutil.which("tar")
    if git is None or tar is None:
        return None
    archive = folder / "former.tar"
    words = [git, "archive", "-o", str(archive), FORMER, "companion_push", "headless_passkey"]
    if subprocess.run(words, cwd=core.ROOT, check=False, capture_output=True).returncode:
        return None
    code = folder / "former"
    code.mkdir()
    subprocess.run([tar, "-xf", str(archive), "-C", str(code)], check=True)
    return code


@asynccontextmanager
async def _waiting(companions: Sequence[Waiting], *, streams: bool) -> AsyncIterator[None]:
    begun = asyncio.Semaphore(0)
    tasks = []
    try:
        for first in range(0, len(companions), _TOGETHER):
            some = companions[first : first + _TOGETHER]
            tasks += [
                asyncio.create_task(each.streams(begun) if streams else each.polls(begun)) for each in some
            ]
            async with asyncio.timeout(60):
                for _ in some:
                    await begun.acquire()
        await asyncio.sleep(1)  # what is between the head of a poll and its being held
        for task in tasks:
            if task.done():
                await task  # one that fails costs nothing, and would be counted
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


_TOGETHER: Final = 50  # that come at the same time


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """All that a run has measured. Times are seconds, memory is bytes for each that waits."""

    waiting: int
    submits: tuple[list[float], list[float]]  # relay, bare server
    polls: list[tuple[float, float]]
    durable: list[tuple[float, float]] | None  # None without the former version
    plain: float
    plain_bare: float
    plain_uvloop: float
    tls: float
    tls_uvloop: float
    ways: Row
    stream: Costs
    poll: Costs


async def measured(folder: Path, waiting: int) -> Measured:
    few, encrypted = min(FEW, waiting), min(ENCRYPTED, waiting)
    accounts_needed = max(waiting, AT_ONCE * EACH * BLOCKS // 2)
    async with placed(folder, accounts_needed) as place:
        certificate = make_certificate(folder, names=("localhost", "127.0.0.1"))
        former = former_version(folder)

        async def memory_of(number: int, server: Server) -> float:
            return await memory(server, place.waiting(server, number))

        submitted = await submits(place, number=waiting, blocks=BLOCKS, in_block=IN_BLOCK)
        polled = await polls(place, blocks=BLOCKS, in_block=IN_BLOCK * 5)
        durable = None
        if former is not None:
            durable = await durable_submits(place, former, at_once=AT_ONCE, each=EACH, blocks=BLOCKS // 2)
        used = []
        for number, running in (
            (waiting, place.relay()),
            (waiting, place.bare()),
            (waiting, place.relay(loop="uvloop")),
            (encrypted, place.relay(certificate=certificate)),
            (encrypted, place.relay(certificate=certificate, loop="uvloop")),
        ):
            async with running as server:
                used.append(await memory_of(number, server))
        pairs = await times(place, number=few, rounds=ROUNDS)
        return Measured(
            waiting=waiting,
            submits=submitted,
            polls=polled,
            durable=durable,
            plain=used[0],
            plain_bare=used[1],
            plain_uvloop=used[2],
            tls=used[3],
            tls_uvloop=used[4],
            ways=Row.of_pairs(f"submit to companion, {few // 2} of each waiting: stream", "long poll", pairs),
            stream=await costs(place, streams=True, number=few, idle=IDLE),
            poll=await costs(place, streams=False, number=few, idle=IDLE),
        )


def _percentile(values: Sequence[float], percent: int) -> float:
    return quantiles(values, n=100, method="inclusive")[percent - 1]


def _verdict(*, met: bool, aim: str) -> str:
    return f"{aim}: " + ("yes" if met else "**no**")


def _rows(found: Measured) -> list[tuple[str, ...]]:
    """The lines of the table that have a server beside the relay, or an aim."""
    ours, theirs = found.submits
    rows: list[tuple[str, ...]] = []
    for name, percent in (("p50", 50), ("p99", 99)):
        one, other = _percentile(ours, percent), _percentile(theirs, percent)
        met = one <= AIM_SUBMIT * other
        what = f"submit to companion, {found.waiting} waiting, {name}"
        aim = _verdict(met=met, aim=f"at most {AIM_SUBMIT:g}")
        rows.append((what, shown(one), "bare server", shown(other), f"{one / other:.2f}", aim))
    rows.append(
        Row.of_pairs("processor of a poll that finds nothing", "bare server", found.polls, aim=AIM_POLL).cells
    )
    if found.durable is not None:
        row = Row.of_pairs(f"a durable submit, {AT_ONCE} devices at once", FORMER, found.durable)
        times_more = median(other / one for one, other in found.durable)
        aim = _verdict(met=times_more >= AIM_FORMER, aim=f"at most {1 / AIM_FORMER:g}")
        rows.append((*row.cells[:-1], aim))
    above = found.plain - found.plain_bare
    rows += [
        (
            f"memory for each of {found.waiting} held polls",
            _kib(found.plain),
            "bare server",
            _kib(found.plain_bare),
            f"{found.plain / found.plain_bare:.2f}",
            _verdict(met=above <= AIM_MEMORY * 1024, aim=f"at most {AIM_MEMORY:g} KiB more"),
        ),
        (
            "the same on uvloop", _kib(found.plain_uvloop), "asyncio", _kib(found.plain),
            f"{found.plain_uvloop / found.plain:.2f}", "",
        ),
        *(
            (
                f"memory for each of {min(ENCRYPTED, found.waiting)} held polls under TLS, {loop}",
                _kib(used), "", "", "", _verdict(met=used <= AIM_TLS * 1024, aim=f"at most {AIM_TLS:g} KiB"),
            )
            for loop, used in (("asyncio", found.tls), ("uvloop", found.tls_uvloop))
        ),
        found.ways.cells,
        (
            f"memory for each of {min(FEW, found.waiting)} streams", _kib(found.stream.memory), "long poll",
            _kib(found.poll.memory), f"{found.stream.memory / found.poll.memory:.2f}", "",
        ),
        (
            "processor for each stream, a minute in which nothing happens", shown(found.stream.processor), "long poll",
            shown(found.poll.processor), f"{found.stream.processor / found.poll.processor:.2f}", "",
        ),
    ]  # fmt: skip
    return rows


def _kib(size: float) -> str:
    return f"{size / 1024:.1f} KiB"


def _page(found: Measured) -> list[str]:
    left_out = "" if found.durable is not None else " The former version was not at hand."
    return [
        HEADING,
        "",
        core.made() + left_out,
        "",
        table(HEADINGS, _rows(found)),
        "",
        "The relay is the program, with its store on the disk, without TLS and on asyncio where nothing else is said. The bare server is aiohttp alone: it gets the same calls, with their proofs,",
        "and verifies, stores and limits nothing. What has a server beside it ran with it in turns. A companion that polls asks again as soon as it is answered, with a new proof;",
        "one that streams has made one proof, and the relay looks its membership up every 20 s.",
        "The polls whose processor time is measured are of one companion. Where an aim is missed: a poll verifies a signature (as much processor time as a third of the bare server's poll) and reads the inbox in a transaction of seven statements, a submit writes besides,",
        "and the bare server does neither. A held poll keeps the relay's own frames and a timer beside what aiohttp keeps; only leaving aiohttp's handler while it waits would bring that to the aim, and that rests on what aiohttp does not promise.",
        "Under TLS asyncio keeps a buffer of 256 KiB for each connection, which uvloop does not.",
        "A stream saves the proofs, and what a phone pays for asking.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what waiting for requests costs.")
    parser.add_argument("--write", action="store_true", help="put it into benchmarks/RESULTS.md")
    parser.add_argument("--store", type=Path, help="folder for the stores; default: a temporary one")
    parser.add_argument(
        "--waiting", type=int, default=WAITING, metavar="N", help=f"companions that wait; default: {WAITING}"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.store) as folder:
        found = asyncio.run(measured(Path(folder), args.waiting))
    page = "\n".join(_page(found)) + "\n"
    print(page)
    if args.write:
        core.put_section(HEADING, page)


if __name__ == "__main__":
    main()

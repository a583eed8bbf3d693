"""What a waiting companion costs the relay, and how soon a request reaches it: by a stream, and by long polling.

    make bench                                         with the other benchmarks
    PYTHONPATH=examples:. python benchmarks/relay.py   measure and print

The relay runs as the program, with its store on the disk; all companions are connections of this process. Each has an account
of its own with one device. The two ways run in turns on one relay for the times, and each on a relay of its own for the memory.
"""

import argparse
import asyncio
import datetime as dt
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
import core
from measure import HEADINGS, Row, shown, table

from companion_push.relay.accounts import add_account
from companion_push.relay.database import open_database
from headless_passkey.net.proof import NONCE_HEADER, PROOF_HEADER, make_proof
from headless_passkey.text.base64url import base64url
from tests.trust.people import Person, companion, device, found, grow

HEADING: Final = "# What a waiting companion costs the relay"
WAITING: Final = 300
ROUNDS: Final = 60
IDLE: Final = 50.0  # seconds: two long polls, and two heartbeats and a half
SEALED: Final = base64url(bytes(700))


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Of one way to wait."""

    memory: float  # bytes of the relay for each that waits
    processor: float  # seconds of the relay in a minute, for each that waits while nothing happens


class Relay:
    """The program, and its callers."""

    def __init__(self, url: str, process: int, http: aiohttp.ClientSession) -> None:
        self.url, self._process, self.http = url, process, http
        self._nonce = ""

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
            head = self.proof(person, method, path)
            async with self.http.request(method, self.url + path + query, headers=head, json=body) as answer:
                self._nonce = answer.headers.get(NONCE_HEADER, self._nonce)
                content = await answer.read()
                if answer.status < 400:
                    return content
        raise RuntimeError(f"{method} {path}: {answer.status} {content!r}")

    def memory(self) -> int:
        """Bytes of the process."""
        return int(Path(f"/proc/{self._process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def processor(self) -> float:
        """Seconds of the process, all its threads."""
        threads = Path(f"/proc/{self._process}/task").glob("*/schedstat")
        return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


class Waiting:
    """A companion that waits, and its device."""

    def __init__(self, relay: Relay, phone: Person, frame: Person) -> None:
        self.relay, self.phone, self.frame = relay, phone, frame
        self.arrived = asyncio.Event()

    async def streams(self, begun: asyncio.Semaphore) -> None:
        path = "/v1/inbox/stream"
        head = self.relay.proof(self.phone, "GET", path)
        async with self.relay.http.get(self.relay.url + path, headers=head) as answer:
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
        await self.arrived.wait()
        took = time.perf_counter() - began
        await submitting
        await self.relay.call(self.frame, "POST", f"/v1/requests/{name}/events", {"event": "cancelled"})
        return took


@asynccontextmanager
async def running(folder: Path, number: int) -> AsyncIterator[tuple[Relay, list[Waiting]]]:
    """A relay with so many accounts."""
    words = (
        *(
            "-m",
            "companion_push",
            "relay",
            "--listen",
            "127.0.0.1:0",
            "--store",
            str(folder / "relay.sqlite3"),
        ),
        *("--held-per-address", "0", "--connections-per-address", "2048", "--log-level", "warning"),
        *("--requests-per-minute", "1000000", "--requests-per-day", "1000000"),
        *("--account-requests-per-day", "1000000", "--no-pauses"),
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        url = (await process.stdout.readline()).decode().strip()
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
            relay = Relay(url, process.pid, http)
            yield relay, [await _account(relay, folder, which) for which in range(number)]
    finally:
        process.terminate()
        await process.wait()


async def _account(relay: Relay, folder: Path, which: int) -> Waiting:
    """An account with one companion and one device."""
    phone, frame, now = companion(), device(), time.time()
    name = f"account {which}"
    async with open_database(folder / "relay.sqlite3") as database:
        added = await database.transact(
            lambda db: add_account(db, name=name, now=now, expires_at=int(now) + 3600)
        )
    assert added is not None
    account, code = added
    ring = found(phone, account=account, account_name=name, now=now)
    await relay.call(
        phone, "POST", "/v1/accounts", {"code": base64url(code), "ring": base64url(ring.document)}
    )
    longer = grow(ring, phone, phone, frame, now=now)
    await relay.call(phone, "POST", "/v1/ring", {"ring": base64url(longer.document)})
    return Waiting(relay, phone, frame)


async def costs(folder: Path, *, streams: bool, number: int, idle: float) -> Costs:
    """Have `number` companions wait while nothing happens, for `idle` seconds."""
    async with running(folder, number) as (relay, companions):
        before = relay.memory()
        async with _waiting(companions, streams=streams):
            memory = (relay.memory() - before) / number
            used = relay.processor()
            await asyncio.sleep(idle)
            return Costs(memory=memory, processor=(relay.processor() - used) / number * 60 / idle)


async def times(folder: Path, *, number: int, rounds: int) -> list[tuple[float, float]]:
    """The seconds from submitting until a companion has it, by a stream and by a long poll, in turns."""
    async with running(folder, number) as (_, companions):
        half = number // 2
        async with _waiting(companions[:half], streams=True), _waiting(companions[half:], streams=False):
            gc.collect()
            return [
                (await companions[turn % half].submit(), await companions[half + turn % half].submit())
                for turn in range(rounds)
            ]


@asynccontextmanager
async def _waiting(companions: list[Waiting], *, streams: bool) -> AsyncIterator[None]:
    begun = asyncio.Semaphore(0)
    tasks = [
        asyncio.create_task(each.streams(begun) if streams else each.polls(begun)) for each in companions
    ]
    try:
        for _ in tasks:
            await begun.acquire()
        await asyncio.sleep(1)  # what is between the head of a poll and its being held
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def measured(folder: Path) -> tuple[Row, Costs, Costs]:
    places = [folder / name for name in ("times", "stream", "poll")]
    for place in places:
        place.mkdir()
    pairs = await times(places[0], number=WAITING, rounds=ROUNDS)
    stream = await costs(places[1], streams=True, number=WAITING, idle=IDLE)
    poll = await costs(places[2], streams=False, number=WAITING, idle=IDLE)
    what = f"submit to companion, {WAITING // 2} of each waiting"
    return Row.of_pairs(f"{what}: stream", "long poll", pairs), stream, poll


def _page(row: Row, stream: Costs, poll: Costs) -> list[str]:
    def line(what: str, one: str, other: str, ratio: float) -> tuple[str, ...]:
        return what, one, "long poll", other, f"{ratio:.2f}"

    return [
        HEADING,
        "",
        f"Made by `{core.COMMAND}` on {dt.datetime.now(dt.UTC):%Y-%m-%d}, commit {core._commit()}; load {os.getloadavg()[0]:.1f} at the end.",
        "",
        table(
            HEADINGS[:-1],
            [
                row.cells[:-1],
                line(
                    f"memory for each of {WAITING} streams",
                    f"{stream.memory / 1024:.1f} KiB",
                    f"{poll.memory / 1024:.1f} KiB",
                    stream.memory / poll.memory,
                ),
                line(
                    "processor for each stream, a minute in which nothing happens",
                    shown(stream.processor),
                    shown(poll.processor),
                    stream.processor / poll.processor,
                ),
            ],
        ),
        "",
        "The relay is the program without TLS, with its store on the disk. A companion that polls asks again as soon as it is answered, with a new proof;",
        "one that streams has made one proof, and the relay looks its membership up every 20 s.",
        "A stream brings a request no sooner than a poll that is held; it saves the proofs, and what a phone pays for asking.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what waiting for requests costs.")
    parser.add_argument("--write", action="store_true", help="put it into benchmarks/RESULTS.md")
    parser.add_argument("--store", type=Path, help="folder for the stores; default: a temporary one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.store) as folder:
        row, stream, poll = asyncio.run(measured(Path(folder)))
    page = "\n".join(_page(row, stream, poll)) + "\n"
    print(page)
    if args.write:
        core.put_section(HEADING, page)


if __name__ == "__main__":
    main()

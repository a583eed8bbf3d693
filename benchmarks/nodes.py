"""What several relays on one database in PostgreSQL cost: against the same writes in bare SQL, and one, two, three of them.

    make bench                                          with the other benchmarks
    PYTHONPATH=examples:. python benchmarks/nodes.py    measure and print

The server is a private one of this machine, with fsync. A submit and a claim are the relay's whole operations in this process,
without HTTP; bare SQL writes what every relay has to keep of them, the account's state and the envelope, in as many bytes: in
one transaction, one statement after the other, in a thread. A file of SQLite has the same measured. Then relays run as programs,
and devices of as many accounts submit over HTTP, all at once, in turns with one, two and three of them. What more of them would do with a processor each is simulated (`simulated_relays.py`).
"""

import argparse
import asyncio
import contextlib
import os
import secrets
import sqlite3
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

import aiohttp
import core
from measure import HEADINGS, Row, processor_seconds, table, timed
from simulated_relays import Parts, seconds_each

from companion_push.relay import operations
from companion_push.relay.app import RELAY, RelayEndpoints
from companion_push.relay.messages import CompanionReport, DeviceReport, Submission, parse_body
from companion_push.relay.redis_place import RedisPlace
from companion_push.relay.store_place import PostgresUri, StorePlace
from headless_passkey.text.base64url import from_base64url
from headless_passkey.trust.word import Word
from program_parts.base64url import base64url
from tests.companion.program import running
from tests.ports import reserved_port
from tests.relay.household import Caller, Clock, Household, fresh_id, running_relay
from tests.relay.redis_servers import RedisServer, program
from tests.relay.stores import PostgresServer, is_installed

HEADING: Final = "# What several relays on one database cost"
HOMES: Final = 100  # accounts, each of which calls in its turn
EARLIER: Final = 2  # requests of each that are over
ROUNDS: Final = 2  # of all of them
DEVICES: Final = 24  # that submit at the same time
BLOCKS: Final = 6  # turns of each number of relays
EACH: Final = 4  # submits of each device in one turn
AIM: Final = 3.0  # times bare SQL
AIM_FILE: Final = 1.5
ACCOUNTS: Final = 400  # of which the size of one is the mean
ENVELOPE: Final = base64url(bytes(700))


class BareDatabase:
    """The same writes in bare SQL, in PostgreSQL."""

    def __init__(self, place: PostgresUri) -> None:
        import psycopg  # noqa: PLC0415  of an extra

        self._connection = psycopg.connect(place.uri, autocommit=True)
        self._connection.execute("CREATE TABLE bare_states (account TEXT PRIMARY KEY, value BYTEA NOT NULL)")
        self._connection.execute("CREATE TABLE bare_envelopes (id INT PRIMARY KEY, sealed BYTEA NOT NULL)")

    def size_of(self, account: str) -> int:
        """Bytes of an account's state in the relay's store."""
        (found,) = self._connection.execute(_SIZE.replace("?", "%s"), (account,)).fetchone() or (0,)
        return int(found)

    async def submit(self, account: str, value: bytes, turn: int) -> None:
        await asyncio.to_thread(self._write, account, value, turn)

    async def claim(self, account: str, value: bytes) -> None:
        await asyncio.to_thread(self._write, account, value, None)

    def _write(self, account: str, value: bytes, turn: int | None) -> None:
        with self._connection.transaction():
            self._connection.execute(_STATE.replace("?", "%s"), (account, value))
            if turn is not None:
                self._connection.execute("INSERT INTO bare_envelopes VALUES (%s, %s)", (turn, bytes(700)))

    def close(self) -> None:
        self._connection.close()


class BareFile:
    """The same writes in bare SQL, in a file of SQLite beside the relay's: each is on the disk when it is done."""

    def __init__(self, relay: Path) -> None:
        self._relay = relay
        path = relay.with_name("bare")
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        for statement in (
            "PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL",
            "CREATE TABLE bare_states (account TEXT PRIMARY KEY, value BLOB NOT NULL)",
            "CREATE TABLE bare_envelopes (id INTEGER PRIMARY KEY, sealed BLOB NOT NULL)",
        ):  # fmt: skip
            self._connection.execute(statement)

    def size_of(self, account: str) -> int:
        """As in PostgreSQL."""
        with contextlib.closing(sqlite3.connect(f"file:{self._relay}?mode=ro", uri=True)) as relay:
            return int(relay.execute(_SIZE, (account,)).fetchone()[0])

    async def submit(self, account: str, value: bytes, turn: int) -> None:
        # in a thread, as nobody waits for a disk on an event loop
        await asyncio.to_thread(self._write, account, value, turn)

    async def claim(self, account: str, value: bytes) -> None:
        await asyncio.to_thread(self._write, account, value, None)

    def _write(self, account: str, value: bytes, turn: int | None) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.execute(_STATE, (account, value))
        if turn is not None:
            self._connection.execute("INSERT INTO bare_envelopes VALUES (?, ?)", (turn, bytes(700)))
        self._connection.execute("COMMIT")

    def close(self) -> None:
        self._connection.close()


_STATE: Final = (
    "INSERT INTO bare_states VALUES (?, ?) ON CONFLICT (account) DO UPDATE SET value = excluded.value"
)
_SIZE: Final = "SELECT length(value) FROM account_states WHERE account = ?"


async def against_sql(place: StorePlace, folder: Path) -> list[Row]:
    """Submits and claims in turns with their writes in bare SQL."""
    is_file = isinstance(place, Path)
    bare = BareFile(place) if isinstance(place, Path) else BareDatabase(place)
    submits: list[tuple[float, float]] = []
    claims: list[tuple[float, float]] = []
    async with running_relay(folder, place=place, clock=None) as running_one:
        scout, *homes = [
            await running_one.household(f"home {number}", companions=1) for number in range(1 + HOMES)
        ]
        relay = running_one.app[RELAY]
        with contextlib.closing(bare):
            for turn in range((EARLIER + ROUNDS) * HOMES):
                if turn % HOMES == 0:  # all states are of the same size: one account goes ahead in each round
                    ahead = await _request_of(scout)
                    await relay.run(ahead.device, ahead.submit(relay))
                    submitted = bare.size_of(scout.account)
                    await relay.run(ahead.companion, ahead.claim)
                    claimed = bare.size_of(scout.account)
                    await relay.run(ahead.device, ahead.complete)
                home = homes[turn % HOMES]
                request = await _request_of(home)
                values = secrets.token_bytes(submitted), secrets.token_bytes(claimed)
                submit = await _in_turns(
                    partial(relay.run, request.device, request.submit(relay)),
                    partial(bare.submit, home.account, values[0], turn),
                    turn,
                )
                claim = await _in_turns(
                    partial(relay.run, request.companion, request.claim),
                    partial(bare.claim, home.account, values[1]),
                    turn,
                )
                await relay.run(request.device, request.complete)
                if turn >= EARLIER * HOMES:
                    submits.append(submit)
                    claims.append(claim)
            verified = [timed(request.verify, 20) for _ in range(ROUNDS * HOMES)]
    engine, aim = ("SQLite", AIM_FILE) if is_file else ("PostgreSQL", AIM)
    against = "the same writes in SQL"
    return [
        Row.of_pairs(f"{engine}: a submit, one at a time", against, submits, aim=aim),
        Row.of_pairs(f"{engine}: a claim, one at a time", against, claims, aim=aim),
        Row(what=f"{engine}: of a claim, to verify and parse its word", seconds=median(verified)),
    ]


@dataclass(frozen=True, kw_only=True)
class _Request:
    """A request that is about to be made, and what its device and its companion do with it."""

    device: str  # their names
    companion: str
    submit: Callable[[RelayEndpoints], operations.Operation]
    claim: operations.Operation
    complete: operations.Operation
    verify: Callable[[], object]


async def _request_of(home: Household) -> _Request:
    """Prepare a request of a home's device to its companion."""
    (anna,), (frame,) = home.companions, home.devices
    name = fresh_id()
    body = parse_body(
        b'{"expires_in":300,"envelopes":[{"to":"%s","sealed":"%s"}]}'
        % (anna.name.encode(), ENVELOPE.encode()),
        Submission,
    )
    word = await anna.claim(frame, name, sealed=bytes(700))
    report = parse_body(b'{"event":"claimed","word":"%s"}' % word.encode(), CompanionReport)
    done = parse_body(b'{"event":"completed"}', DeviceReport)
    signer = home.ring.member(anna.name)
    assert signer is not None
    return _Request(
        device=frame.name,
        companion=anna.name,
        submit=lambda relay: relay.submission(name, body),
        claim=operations.companion_event(frame.name, name, report),
        complete=operations.device_event(name, done),
        verify=partial(Word.parse, from_base64url(word), by=signer),
    )


async def _in_turns(
    ours: Callable[[], Awaitable[object]], bare: Callable[[], Awaitable[object]], turn: int
) -> tuple[float, float]:
    """The seconds of both; which comes first changes from turn to turn."""
    taken = []
    for each in (ours, bare) if turn % 2 else (bare, ours):
        began = time.perf_counter()
        await each()
        taken.append(time.perf_counter() - began)
    first, second = taken
    return (first, second) if turn % 2 else (second, first)


async def by_number(
    place: PostgresUri,
    folder: Path,
    database: int,
    states: RedisPlace | None = None,
    redis: int | None = None,
) -> list[Row]:
    """Durable submits over HTTP, by the number of relays; seconds for one of them, with all devices at once.

    database, redis: the processes. states: where account states are, when not in the database.
    """
    url = f"http://127.0.0.1:{reserved_port()}"
    many = ("--requests-per-minute", "--requests-per-day", "--account-requests-per-day")
    words = [
        *("relay", "--listen", "127.0.0.1:0", "--public-url", url, "--store", place.uri, "--no-pauses"),
        *(() if states is None else ("--states", str(states))),
        *(word for option in many for word in (option, "100000")),
    ]
    async with contextlib.AsyncExitStack() as stack:
        programs = [await stack.enter_async_context(running(*words)) for _ in range(3)]
        places = [await program.line() for program in programs]
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        )
        async with running_relay(folder, place=place, states=states, url=url) as beside:
            homes = [await beside.household(f"home {number}", companions=1) for number in range(DEVICES)]
        seconds: dict[int, list[float]] = {1: [], 2: [], 3: []}
        alone, together = [], []
        used = partial(_used, programs[0].process.pid, database, redis)
        for _ in range(BLOCKS):
            for number, found in seconds.items():
                callers = [
                    (
                        Caller(home.devices[0].person, session, url, Clock(), at=places[each % number]),
                        home.companions[0],
                    )
                    for each, home in enumerate(homes)
                ]
                for device, _ in callers:
                    await device.get("/v1/ring")  # the nonce
                before = used()
                began = time.perf_counter()
                await asyncio.gather(*(_submit(device, companion) for device, companion in callers))
                found.append((time.perf_counter() - began) / (DEVICES * EACH))
                if number == 1:
                    together.append(_each(before, used(), 0))
                    before = used()
                    began = time.perf_counter()
                    for device, companion in callers:
                        await _submit(device, companion)
                    alone.append(_each(before, used(), time.perf_counter() - began))
    also = "" if states is None else ", states in Redis"
    rows = [
        Row.of_pairs(
            f"a durable submit, {DEVICES} devices at once, {number} relays{also}",
            f"one relay{also}",
            list(zip(seconds[number], seconds[1], strict=True)),
        )
        for number in (2, 3)
    ]
    simulated = await asyncio.to_thread(_simulated, _parts(together, alone), median(seconds[1]), also)
    return [*rows, *simulated]


def _used(relay: int, database: int, redis: int | None) -> tuple[float, ...]:
    """Seconds of processor time so far: of this process, which calls, the relay, the database, and Redis."""
    servers = (processor_seconds(relay), processor_seconds(database, children=True))
    return time.process_time(), *servers, 0.0 if redis is None else processor_seconds(redis)


def _each(before: tuple[float, ...], after: tuple[float, ...], passed: float) -> tuple[float, ...]:
    """The same of one submit, and the seconds that passed."""
    used = (second - first for first, second in zip(before, after, strict=True))
    return tuple(each / (DEVICES * EACH) for each in (*used, passed))


def _parts(together: list[tuple[float, ...]], alone: list[tuple[float, ...]]) -> Parts:
    """together, alone: as of `_each`, for each turn. What waits for no processor is seen where one submit follows the other."""
    caller, relay, database, redis, _ = (median(each) for each in zip(*together, strict=True))
    *by_itself, passed = (median(each) for each in zip(*alone, strict=True))
    return Parts(
        caller=caller,
        relay=relay,
        database=database,
        redis=redis,
        waiting=max(0.0, passed - sum(by_itself)),
    )


def _simulated(parts: Parts, measured: float, also: str) -> list[Row]:
    """How well the simulation meets what was measured, and what it says of relays with a processor each."""
    here = seconds_each(parts, relays=1, devices=DEVICES, processors=os.cpu_count())
    wide = {number: seconds_each(parts, relays=number, devices=DEVICES * 4) for number in (1, 2, 3)}
    return [
        Row(
            what=f"simulated: the same on {os.cpu_count()} processors, one relay{also}",
            seconds=here,
            against="as it was measured",
            baseline=measured,
            ratio=here / measured,
        ),
        *(
            Row(
                what=f"simulated: {DEVICES * 4} devices at once, {number} relays with a processor each{also}",
                seconds=wide[number],
                against=f"one such relay{also}",
                baseline=wide[1],
                ratio=wide[number] / wide[1],
            )
            for number in (2, 3)
        ),
        *(
            Row(what=f"of a submit, the {name}'s processor time{also}", seconds=seconds)
            for name, seconds in (("relay", parts.relay), ("database", parts.database))
        ),
        *([Row(what="of a submit, Redis's processor time", seconds=parts.redis)] if also else []),
    ]


async def _submit(device: Caller, companion: Caller) -> None:
    for _ in range(EACH):
        reply = await device.submit(companion)
        if reply.status != 201:
            raise RuntimeError(f"a submit was answered {reply.status}")


async def size_of_account(place: PostgresUri, folder: Path) -> float:
    """Bytes that the database grows by for an account with one companion and one device, indexes included."""
    import psycopg  # noqa: PLC0415  of an extra

    # what lies on the disk has the same size, written later
    with psycopg.connect(place.uri, autocommit=True) as database:
        database.execute(f'ALTER DATABASE "{database.info.dbname}" SET synchronous_commit TO off')
    async with running_relay(folder, place=place, clock=None) as relay:
        with psycopg.connect(place.uri, autocommit=True) as database:

            def size() -> int:
                database.execute("VACUUM")  # or the rows that were changed would count as well
                (found,) = database.execute("SELECT pg_database_size(current_database())").fetchone() or (0,)
                return int(found)

            await relay.household("the first", companions=1)
            before = await asyncio.to_thread(size)
            for number in range(ACCOUNTS):
                await relay.household(f"home {number}", companions=1)
            return (await asyncio.to_thread(size) - before) / ACCOUNTS


async def measured(server: PostgresServer, folder: Path) -> tuple[list[Row], float]:
    """The rows, and the bytes of an account."""
    size = await size_of_account(server.database_for(folder / "accounts"), folder)
    rows = await against_sql(server.database_for(folder / "one"), folder)
    rows += await against_sql(folder / "relay.sqlite3", folder)
    database = int((server.folder / "data" / "postmaster.pid").read_text().split()[0])
    rows += await by_number(server.database_for(folder / "more"), folder, database)
    if program("redis") is None:
        return rows, size
    redis = RedisServer("redis")
    try:
        rows += await by_number(
            server.database_for(folder / "states"), folder, database, redis.place(), redis.process
        )
    finally:
        redis.end()
    return rows, size


def _page(rows: Sequence[Row], size: float) -> list[str]:
    return [
        HEADING,
        "",
        core.made(),
        "",
        table(HEADINGS, [row.cells for row in rows]),
        "",
        f"{os.cpu_count()} processors, on which the server, all relays and those who call them run: more relays than processors cannot be faster here. What they would do is simulated from the processor times of a submit in caller, relay, database and Redis, and from what is left of one that is alone (the disk): each relay and Redis does one thing at a time, the network takes nothing, and the database has as many processors as it asks for. Bare SQL writes what any relay has to keep on the disk, in as many bytes: the account's state over the one of before, as long as the relay's is at that step,",
        "and of a submit the envelope. It verifies nothing, reads nothing, and wakes nobody. In a file it is one transaction with SQLite's own sync (`synchronous=FULL`), in a thread, as nobody waits for a disk on an event loop. The relay reads and checks who calls, the ring, the mutes, the state and a claim's signature, in serializable transactions, and notifies the others: three round trips, where bare SQL has four of a submit and three of a claim. Where a claim on a file spends its time is in [ADR 52](../docs/adr/0052-what-a-change-waits-for.md).",
        f"{HOMES} accounts call in turn, each with {EARLIER} requests or more that are over. They have called before: their keys, their rings and their states are parsed already.",
        f"An account with one companion and one device takes {size / 1024:.1f} KiB of the database at rest, indexes included (the mean of {ACCOUNTS}).",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what several relays on one database cost.")
    parser.add_argument("--write", action="store_true", help="put it into benchmarks/RESULTS.md")
    args = parser.parse_args()
    if not is_installed():
        print("PostgreSQL is not installed: several relays are not measured", file=sys.stderr)
        return
    server = PostgresServer(durable=True)
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = asyncio.run(measured(server, Path(folder)))
    finally:
        server.end()
    page = "\n".join(_page(*found)) + "\n"
    print(page)
    if args.write:
        core.put_section(HEADING, page)


if __name__ == "__main__":
    main()

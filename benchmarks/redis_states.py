"""What a change of an account's state costs in Redis: by the rules, against the same script with the same bytes; and memory.

    make bench                                                     with the other benchmarks
    PYTHONPATH=examples:. python benchmarks/redis_states.py        measure and print

A private server, without a log on the disk (which would be measured otherwise), and one thread. An enqueue is a submission with
one envelope of 700 bytes, a claim the change that a companion makes: load, rules, encoding, compare and set. The raw call is the
same EVALSHA, with the bytes that the other has sent, over a version that is the newest.
"""

import argparse
import asyncio
import dataclasses
from collections.abc import Callable
from statistics import median
from typing import Any, Final

import core
from measure import HEADINGS, ROUNDS, Row, compare, table, timed

from companion_push.relay.account_states import StateCache, States, Write
from companion_push.relay.mailbox import CompanionEvent, Request
from companion_push.relay.redis_states import RedisStates, open_redis
from tests.relay.redis_servers import RedisServer

EXPLAINED: Final = (
    "One thread, a server without a log on the disk. A change is load, rules, encoding, compare and set; the same EVALSHA is its\n"
    "compare and set alone, with the same bytes. The load is a round trip, which a node could spare whose value is the newest; the rest\n"
    "above the script is rules and encoding, in Python."
)
HEADING: Final = "# What a change of an account's state costs in Redis"
AIM: Final = 2.0  # times the raw call
NOW: Final = 1_800_000_000.0
ENVELOPE: Final = bytes(700)
PENDING: Final = 2000
NAMES: Final = tuple(f"{number:043d}" for number in range(4))  # of the length of a key's thumbprint


class Recorder:
    """A store that keeps the last write, for who repeats it."""

    def __init__(self, states: RedisStates) -> None:
        self._states = states
        self.last: Write | None = None
        self.load, self.envelopes, self.due = states.load, states.envelopes, states.due

    def cas(self, write: Write) -> Any:
        self.last = write
        return self._states.cas(write)


def request(account: str, number: int) -> Request:
    return Request(
        account=account,
        device=NAMES[0],
        id=f"{number:022d}",
        recipients=(NAMES[1],),
        fingerprint=bytes(32),
        submitted_at=int(NOW),
        expires_at=int(NOW) + 300,
    )


def enqueue(store: Any, cache: StateCache, account: str, number: int) -> None:
    states = States(store, NOW, cache)
    states.put(account, states.of(account).spending(NAMES[0], {"3/60": NOW + 20}))
    new = request(account, number)
    states.save(*(each.superseded() for each in states.of(account).requests if each.live), new)
    states.seal(new, {NAMES[1]: ENVELOPE})
    states.store()


def turn(store: Any, cache: StateCache, account: str) -> None:
    """A claim, or that it is given back: the value has the same size again and again."""
    states = States(store, NOW, cache)
    held = next(each for each in states.of(account).requests if each.live)
    event = CompanionEvent.RELEASED if held.claimed_by else CompanionEvent.CLAIMED
    states.save(held.companion_says(NAMES[1], event, None, now=NOW, word=bytes(400)))
    states.store()


def repeated(states: RedisStates, write: Write) -> Callable[[], None]:
    """The script's call with the bytes of a write, over the newest version."""
    versions = [0]

    def raw() -> None:
        versions[0] += 1
        mine = dataclasses.replace(write, account="raw", expected=versions[0] - 1, version=versions[0])
        assert states.cas(mine) is None

    return raw


def measured(states: RedisStates) -> list[Row]:
    rows = []
    for what, change in (("enqueue", "submission"), ("claim, or given back", "claim")):
        recorder, cache, numbers = Recorder(states), StateCache(), iter(range(10**9))
        account = f"account of {change}"
        enqueue(recorder, cache, account, next(numbers))

        def subject(
            change: str = change, recorder: Recorder = recorder, cache: StateCache = cache, account: str = account,
            numbers: Any = numbers,
        ) -> None:  # fmt: skip
            if change == "claim":
                turn(recorder, cache, account)
            else:
                enqueue(recorder, cache, account, next(numbers))

        for _ in range(20):  # until the value has its size
            subject()
        assert recorder.last is not None
        value, envelopes, listed = states._keys("raw")
        states.client.delete(value, envelopes, listed)
        rows.append(compare(what, subject, "the same EVALSHA", repeated(states, recorder.last), aim=AIM))
        loads = [timed(lambda account=account: states.load(account), 50) for _ in range(ROUNDS)]  # type: ignore[misc]
        rows.append(Row(what="of that the load", seconds=median(loads)))
    return rows


def memory(server: RedisServer, states: RedisStates) -> float:
    """Bytes of the server for each account with one request that waits."""
    server.do("FLUSHALL")
    before = int(server.do("INFO", "memory")["used_memory"])
    for number in range(PENDING):
        enqueue(states, StateCache(), f"{number:022d}", number)
    return (int(server.do("INFO", "memory")["used_memory"]) - before) / PENDING


async def run(engine: str) -> str:
    server = RedisServer(engine, "appendonly no")
    try:
        async with open_redis(server.place()) as states:
            rows = measured(states)
            bytes_each = memory(server, states)
            name = states.look().engine
    finally:
        server.end()
    lines = table(HEADINGS, [row.cells for row in rows])
    return f"{name}.\n\n{lines}\n\n{bytes_each:.0f} bytes of memory for an account with one request that waits, its envelope of {len(ENVELOPE)} bytes included."


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=["redis", "valkey"], default="redis")
    parser.add_argument("--write", action="store_true", help="put it into benchmarks/RESULTS.md")
    args = parser.parse_args()
    text = asyncio.run(run(args.engine))
    made = core.made()
    page = f"{HEADING}\n\n{made}\n\n{text}\n\n{EXPLAINED}\n"
    print(page)
    if args.write:
        core.put_section(HEADING, page)


if __name__ == "__main__":
    main()

"""What a change of an account's state costs in Redis: by the rules, against the same script with the same bytes; and memory.

    make bench                                                     with the other benchmarks
    PYTHONPATH=examples:. python benchmarks/redis_states.py        measure and print

Private servers, Redis, Valkey and a Cluster, without a log on the disk (which would be measured otherwise), and one thread. An enqueue is a submission with
one envelope of 700 bytes, a claim the change that a companion makes: rules, encoding, compare and set. The raw call is redis-py's
own for the same EVALSHA, with the bytes that the other has sent, over a version that is the newest. The account has the usual
size, as in `nodes.py`: its device submits every five minutes, so that two requests that are over are still readable.
"""

import argparse
import asyncio
import itertools
from collections.abc import Callable
from statistics import median
from typing import Any, Final

import core
from measure import HEADINGS, ROUNDS, Row, compare, table, timed

from companion_push.relay import account_states
from companion_push.relay.account_states import CONFIRMED, StateCache, States, Write
from companion_push.relay.mailbox import CompanionEvent, Request
from companion_push.relay.redis_states import _CAS, RedisStates, _version, _words, open_redis
from tests.relay.redis_servers import RedisCluster, RedisServer, program

EXPLAINED: Final = (
    "One thread, servers without a log on the disk; an account whose device submits every five minutes, so that two requests that are\n"
    "over are still readable. The same EVALSHA is what any client has to send: redis-py's own call with the same bytes, made beforehand.\n"
    "A process that alone writes an account's state goes by its own, which the compare and set checks; beside others, it reads it first:\n"
    "then a change is a load, which is a round trip, rules, encoding, compare and set. What is above the script then is rules and\n"
    "encoding, in Python."
)
ENGINES: Final = ("redis", "valkey")
HEADING: Final = "# What a change of an account's state costs in Redis"
AIM: Final = 2.0  # times the raw call
NOW: Final = 1_800_000_000.0
ENVELOPE: Final = bytes(700)
PENDING: Final = 2000
EVERY: Final = 300.0  # seconds from one submission to the next
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
    now = int(NOW + number * EVERY)
    return Request(
        account=account,
        device=NAMES[0],
        id=f"{number:022d}",
        recipients=(NAMES[1],),
        fingerprint=bytes(32),
        submitted_at=now,
        expires_at=now + 300,
    )


def enqueue(store: Any, cache: StateCache, account: str, number: int) -> None:
    now = NOW + number * EVERY
    states = States(store, now, cache)
    state = states.of(account, writes=True)
    states.put(account, state.spending({NAMES[0]: {"3/60": now + 20}}, now))
    new = request(account, number)
    states.save(*(each.superseded() for each in state.requests if each.live), new)
    states.seal(new, {NAMES[1]: ENVELOPE})
    states.store()


def turn(store: Any, cache: StateCache, account: str, number: int) -> None:
    """A claim, or that it is given back: the value has the same size again and again."""
    now = NOW + number * EVERY
    states = States(store, now, cache)
    held = next(each for each in states.of(account, writes=True).requests if each.live)
    event = CompanionEvent.RELEASED if held.claimed_by else CompanionEvent.CLAIMED
    states.save(held.companion_says(NAMES[1], event, None, now=now, word=bytes(400)))
    states.store()


def repeated(states: RedisStates, write: Write) -> Callable[[], None]:
    """The script's call with the bytes of a write, over the newest version."""
    words, keys = _words(write), states._keys("raw")
    states.client.delete(*keys)
    data, script, versions = write.data or b"", states._scripts[_CAS], itertools.count()
    states._run(states.client, _CAS, keys, [b"", _version(1) + data, *words[2:]])

    def raw() -> None:
        newest = next(versions) + 1
        words[:2] = [_version(newest), _version(newest + 1) + data]
        assert states.client.evalsha(script, len(keys), *keys, *words) is None

    return raw


def measured(states: RedisStates) -> list[Row]:
    rows, engine = [], states.look().engine
    for what, change in (("enqueue", "submission"), ("claim, or given back", "claim")):
        account = f"account of {change}"
        for alone in (True, False):
            recorder, cache, numbers = Recorder(states), StateCache(), itertools.count()
            states.client.delete(*states._keys(account))
            account_states.CONFIRMED = CONFIRMED if alone else 10**9  # type: ignore[misc]

            def subject(
                change: str = change, recorder: Recorder = recorder, cache: StateCache = cache, account: str = account,
                numbers: Any = numbers,
            ) -> None:  # fmt: skip
                if change == "claim":
                    turn(recorder, cache, account, 3)
                else:
                    enqueue(recorder, cache, account, next(numbers))

            for _ in range(4):  # until the value has its size
                enqueue(recorder, cache, account, next(numbers))
            for _ in range(2 * CONFIRMED):
                subject()
            assert recorder.last is not None
            name = f"{engine}: {what}" if alone else f"{engine}: {what}, beside other processes"
            raw = repeated(states, recorder.last)
            rows.append(compare(name, subject, "the same EVALSHA", raw, aim=AIM))
        loads = [timed(lambda account=account: states.load(account), 50) for _ in range(ROUNDS)]  # type: ignore[misc]
        rows.append(Row(what=f"{engine}: of that the load", seconds=median(loads)))
    return rows


def memory(server: RedisServer, states: RedisStates) -> float:
    """Bytes of the server for each account with one request that waits."""
    server.do("FLUSHALL")
    before = int(server.do("INFO", "memory")["used_memory"])
    for number in range(PENDING):
        enqueue(states, StateCache(), f"{number:022d}", 0)
    return (int(server.do("INFO", "memory")["used_memory"]) - before) / PENDING


async def single(engine: str) -> tuple[list[Row], str]:
    """The rows of one server, and what it says of its memory."""
    server = RedisServer(engine, "appendonly no")
    try:
        async with open_redis(server.place()) as states:
            rows = measured(states)
            return rows, f"{memory(server, states):.0f} bytes of memory ({states.look().engine})"
    finally:
        server.end()


async def cluster(engine: str) -> list[Row]:
    """The rows of a Cluster: three primaries, and a replica of each."""
    servers = RedisCluster(engine, "appendonly no")
    try:
        async with open_redis(servers.place()) as states:
            return measured(states)
    finally:
        servers.end()


async def run() -> str:
    engines = [engine for engine in ENGINES if program(engine) is not None]
    rows: list[Row] = []
    sizes = []
    for engine in engines:
        found, size = await single(engine)
        rows += found
        sizes.append(size)
    if engines:
        rows += await cluster(engines[-1])
    left_out = [engine.capitalize() for engine in ENGINES if engine not in engines]
    return "\n".join(
        [
            HEADING,
            "",
            core.made() + "".join(f" {name} was not run: it is not installed." for name in left_out),
            "",
            table(HEADINGS, [row.cells for row in rows]),
            "",
            f"An account with one request that waits, its envelope of {len(ENVELOPE)} bytes included, takes {', '.join(sizes)}.",
            "",
            EXPLAINED,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="put it into benchmarks/RESULTS.md")
    args = parser.parse_args()
    page = asyncio.run(run())
    print(page)
    if args.write:
        core.put_section(HEADING, page)


if __name__ == "__main__":
    main()

"""A soak: sign-ins at a fixed rate for an hour, and what the servers' memory, descriptors and event loops do meanwhile.

    make soak                                    an hour, prints
    make soak SOAK="--minutes 20 --write"        shorter, and put into benchmarks/RESULTS.md

Relay, tunnel service and relying party run as programs. Devices and companions are in this process: whole sign-ins by the SDK, with new
connections for each. The load is open: each sign-in has a planned time, and its latency is counted from then, however late it could
begin, so that a server that stands still is not asked less (no coordinated omission). Beside it, companions leave the relay and
come back, and tunnels are opened and left.
"""

import argparse
import asyncio
import datetime as dt
import json
import os
import re
import secrets
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean
from typing import Final

import aiohttp
import core
import plots
from measure import shown, table
from world import World

from companion_push.companion.attend import Outcomes, wait_for_requests
from companion_push.companion.consent import Answer, Policy
from companion_push.companion.credential_file import CredentialFile
from companion_push.companion.inbox import Inbox
from companion_push.companion.keys import CompanionState
from companion_push.companion.openers import BuiltInPhone
from companion_push.companion.phone import SoftwarePhone, TunnelService, accept
from companion_push.companion.relay_client import CompanionRelay
from headless_passkey.device import Device
from headless_passkey.errors import HeadlessPasskeyError
from headless_passkey.hybrid.tunnel_url import ROUTING_ID_HEADER, SUBPROTOCOL, connect_url, new_url
from headless_passkey.process.tasks import end
from headless_passkey.radio.source import Advert
from tests.end_to_end.household import Home, trusted
from tests.ports import reserved_port

HEADING: Final = "# What an hour does to the servers"
SERVERS: Final = ("relay", "tunnel service", "relying party")
NUMBER: Final = 300  # the tunnel service's domain number
HOMES: Final = 12
RATE: Final = 1.0  # sign-ins a second
LEAVING: Final = 0.5  # companions a second that leave the relay and come back
TUNNELS: Final = 2.0  # tunnels a second that are opened and left
SAMPLE: Final = 10.0  # seconds between two looks at the servers, at the most
LOOKS: Final = 30  # at the servers, at the least
WARM_UP: Final = 1 / 3  # of the time
TIMEOUT: Final = 60.0  # seconds of a sign-in
FLAT: Final = 0.05  # of the memory, which an hour may add
LAG: Final = re.compile(r'^\w+_loop_lag_seconds_bucket\{le="([^"]+)"\} (\S+)$', re.MULTILINE)


class Air:
    """The radio of one home, which carries each advert to whoever listens."""

    def __init__(self) -> None:
        self._listening: set[asyncio.Queue[bytes]] = set()

    @asynccontextmanager
    async def adverts(self) -> AsyncIterator[AsyncIterator[Advert]]:
        heard: asyncio.Queue[bytes] = asyncio.Queue()

        async def adverts() -> AsyncIterator[Advert]:
            while True:
                yield Advert(service_data=await heard.get())

        self._listening.add(heard)
        try:
            yield adverts()
        finally:
            self._listening.discard(heard)

    @asynccontextmanager
    async def advertise(self, service_data: bytes) -> AsyncIterator[None]:
        for each in self._listening:
            each.put_nowait(service_data)
        yield


@dataclass
class Household:
    """A home with a companion that is there, goes and comes, and one device."""

    home: Home
    air: Air = field(default_factory=Air)
    _attending: asyncio.Task[None] | None = None

    @property
    def world(self) -> World:
        return self.home.world

    @property
    def base(self) -> str:
        return self.world.tunnel.partition("=")[2]

    async def attend(self) -> None:
        """What the companion's program does."""
        who, tls = self.home.phone, trusted(self.world)
        state = CompanionState(self.world.state(who))
        phone = SoftwarePhone(
            credentials=CredentialFile(path=self.world.folder / f"{self.home.account}.json"),
            advertiser=self.air,
            tunnel_service=TunnelService(number=NUMBER, base=self.base),
            tls=tls,
            verify_user=accept,
        )
        async with CompanionRelay.connect(self.world.relay, state.identity().keys.signing, tls=tls) as relay:
            inbox = Inbox(state, relay)
            await wait_for_requests(
                inbox, Policy(Answer.YES), BuiltInPhone(phone=phone), Outcomes(), once=False
            )

    def comes(self) -> None:
        self._attending = asyncio.create_task(self.attend())

    async def leaves(self) -> None:
        """`HeadlessPasskeyError` when the companion had ended by itself."""
        attending, self._attending = self._attending, None
        if attending is None:
            return
        if attending.done():
            attending.result()
        await end(attending)

    @asynccontextmanager
    async def device(self) -> AsyncIterator[Device]:
        state = self.world.state(self.home.hub)
        tunnels = {NUMBER: self.base}
        async with Device.open(state, radio=self.air, tunnels=tunnels, tls=trusted(self.world)) as device:
            yield device


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What a server's process has at a time."""

    at: float  # seconds since the load began
    rss: int  # bytes
    pss: int  # bytes: what is shared with other processes is counted in part
    descriptors: int

    @classmethod
    def of(cls, pid: int, at: float) -> "Sample":
        numbers = dict(
            re.findall(r"^(Rss|Pss): +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
        )
        descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        return cls(
            at=at, rss=int(numbers["Rss"]) << 10, pss=int(numbers["Pss"]) << 10, descriptors=descriptors
        )


@dataclass
class Soak:
    """The load, and what is seen."""

    world: World
    minutes: float
    rate: float
    metrics: Mapping[str, str]  # addresses by server
    households: list[Household] = field(default_factory=list)
    free: asyncio.Queue[Household] = field(default_factory=asyncio.Queue)  # that do not sign in now
    latencies: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)  # seconds from the planned time until a device was free
    failures: Counter[str] = field(default_factory=Counter)
    left: int = 0  # companions that left and came back
    tunnels: int = 0
    samples: dict[str, list[Sample]] = field(default_factory=dict)

    async def settle(self) -> None:
        """Found the homes, register their passkeys."""
        for _ in range(HOMES):
            household = Household(await Home.make(self.world))
            self.households.append(household)
            household.comes()
            async with household.device() as device:
                await device.register(
                    self.world.relying_party, f"ada of {household.home.account}", timeout=TIMEOUT
                )

    async def run(self) -> None:
        """The load to its end."""
        began, seconds = time.monotonic(), 60 * self.minutes
        for household in self.households:
            self.free.put_nowait(household)
        background = [
            asyncio.create_task(work)
            for work in (
                self._watch(began),
                self._regularly(LEAVING, self._go_and_come),
                self._regularly(TUNNELS, self._tunnel),
            )
        ]
        signing_in: set[asyncio.Task[None]] = set()
        for number in range(int(seconds * self.rate)):
            planned = began + number / self.rate
            await asyncio.sleep(max(0.0, planned - time.monotonic()))
            task = asyncio.create_task(self._sign_in(planned))
            signing_in.add(task)
            task.add_done_callback(signing_in.discard)
            for each in background:
                if each.done():
                    each.result()
        if signing_in:
            await asyncio.wait(signing_in)
        for each in background:
            each.cancel()
        await asyncio.wait(background)

    async def _sign_in(self, planned: float) -> None:
        household = await self.free.get()
        self.late.append(time.monotonic() - planned)
        try:
            async with household.device() as device:
                await device.sign_in(self.world.relying_party, timeout=TIMEOUT)
        except HeadlessPasskeyError as error:
            self.failures[f"{type(error).__name__} ({error.reason})"] += 1
        else:
            self.latencies.append(time.monotonic() - planned)
        finally:
            self.free.put_nowait(household)

    async def _regularly(self, rate: float, work: Callable[[], Awaitable[None]]) -> None:
        began, number = time.monotonic(), 0
        while True:
            number += 1
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            await work()

    async def _go_and_come(self) -> None:
        """A companion whose home does not sign in leaves the relay, and comes back."""
        household = await self.free.get()
        await household.leaves()
        household.comes()
        self.left += 1
        self.free.put_nowait(household)

    async def _tunnel(self) -> None:
        """A tunnel that is opened, joined every other time, used, and left without a word."""
        self.tunnels += 1
        tunnel_id = secrets.token_bytes(16)
        base = self.households[0].base
        tls = trusted(self.world)
        async with AsyncExitStack() as stack:
            http = await stack.enter_async_context(
                aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls, force_close=True))
            )
            first = await stack.enter_async_context(
                http.ws_connect(new_url(base, tunnel_id), protocols=(SUBPROTOCOL,))
            )
            if self.tunnels % 2:
                routing_id = bytes.fromhex(first._response.headers[ROUTING_ID_HEADER])
                second = await stack.enter_async_context(
                    http.ws_connect(connect_url(base, routing_id, tunnel_id), protocols=(SUBPROTOCOL,))
                )
                await first.send_bytes(bytes(600))
                await second.receive_bytes()
                await second.send_bytes(bytes(300))
                await first.receive_bytes()

    async def _watch(self, began: float) -> None:
        number, every = 0, min(SAMPLE, 60 * self.minutes / LOOKS)
        while True:
            for name in SERVERS:
                pid = self.world.servers[name][0].process.pid
                self.samples.setdefault(name, []).append(Sample.of(pid, time.monotonic() - began))
            number += 1
            await asyncio.sleep(max(0.0, began + number * every - time.monotonic()))

    def lags(self) -> dict[str, str]:
        """How late each server's event loop was, by the bounds of its histogram."""
        found = {}
        for name, address in self.metrics.items():
            with urllib.request.urlopen(address) as answer:  # noqa: S310  our own program
                buckets = [
                    (float(bound), float(count)) for bound, count in LAG.findall(answer.read().decode())
                ]
            total = buckets[-1][1]
            bounds = [
                next(bound for bound, count in buckets if count >= part * total) for part in (0.5, 0.99, 1.0)
            ]
            found[name] = " / ".join("more" if bound == float("inf") else shown(bound) for bound in bounds)
        return found


def percentile(values: Sequence[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def slope(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Least squares: how much y grows for each x, and the standard error of that."""
    middle, height = mean(x for x, _ in points), mean(y for _, y in points)
    spread = sum((x - middle) ** 2 for x, _ in points)
    growth = sum((x - middle) * (y - height) for x, y in points) / spread
    rest = sum((y - height - growth * (x - middle)) ** 2 for x, y in points)
    return growth, (rest / (len(points) - 2) / spread) ** 0.5


def memory_rows(soak: Soak) -> list[tuple[str, ...]]:
    lags = soak.lags()
    rows: list[tuple[str, ...]] = []
    for name, samples in soak.samples.items():
        after = [each for each in samples if each.at >= 60 * soak.minutes * WARM_UP]
        growth, error = slope([(each.at / 3600, each.pss) for each in after])
        most = FLAT * after[0].pss
        rows.append(
            (
                name,
                f"{samples[0].rss / 2**20:.1f} MiB",
                f"{after[0].rss / 2**20:.1f} / {after[-1].rss / 2**20:.1f} MiB",
                f"{after[0].pss / 2**20:.1f} / {after[-1].pss / 2**20:.1f} MiB",
                f"{growth / 2**20:+.2f} ± {2 * error / 2**20:.2f} MiB",
                "yes"
                if growth + 2 * error <= most
                else "**no**"
                if growth - 2 * error > most
                else "not known",
                f"{min(each.descriptors for each in after)} to {max(each.descriptors for each in after)}, at the end {after[-1].descriptors}",
                lags[name],
            )
        )
    return rows


def page(soak: Soak) -> str:
    done = soak.latencies
    headings = (
        "server",
        "RSS at first",
        "RSS after the warm-up / at the end",
        "PSS the same",
        "PSS grows in an hour by",
        f"at most {FLAT:.0%}",
        "descriptors",
        "event loop late: median / 99 % / most, at most",
    )
    failed = ", ".join(f"{count} {what}" for what, count in soak.failures.most_common()) or "none"
    lines = [
        HEADING,
        "",
        f"Made by `make soak` on {dt.datetime.now(dt.UTC):%Y-%m-%d}, commit {core._commit()}; {core._processor()}, {os.cpu_count()} processors; {soak.minutes:g} minutes, load {os.getloadavg()[0]:.1f} at the end.",
        "",
        table(
            ("sign-ins", "failed", "median", "90 %", "99 %", "99.9 %", "longest"),
            [
                (
                    str(len(done)),
                    failed,
                    *(shown(percentile(done, part)) for part in (0.5, 0.9, 0.99, 0.999)),
                    shown(max(done)),
                )
            ],
        ),
        "",
        table(headings, memory_rows(soak)),
        "",
        f"{soak.rate:g} sign-ins a second over {HOMES} accounts were planned (open load); a latency counts from the planned time, also where a device was not free then",
        f"({sum(each > 0.1 for each in soak.late)} times by more than 100 ms). Meanwhile {soak.left} companions left the relay and came back, and {soak.tunnels} more tunnels were opened and left, half of",
        "them joined. Devices, companions and software phones are in the process that makes the load, which shares this machine's processors with the servers.",
        f"Memory is looked at every {SAMPLE:g} s or more often; the growth is the slope of least squares after the first third of the time, with two standard errors.",
    ]
    return "\n".join(lines) + "\n"


async def soak(minutes: float, rate: float) -> tuple[Soak, str]:
    with tempfile.TemporaryDirectory() as folder:
        ports = {name: reserved_port() for name in SERVERS}
        async with World.start(Path(folder)) as world:
            for name, port in ports.items():
                program, command = world.servers[name]
                more = (
                    ("--requests-per-minute", "100000")
                    if name == "relying party"
                    else ("--rate", "100000")
                    if name == "tunnel service"
                    else ()
                )
                world.servers[name] = (
                    program,
                    (*command[:-2], *more, "--metrics", f"127.0.0.1:{port}", *command[-2:]),
                )
                await world.stop(name)
                await world.restart(name)
            addresses = {name: f"http://127.0.0.1:{port}/metrics" for name, port in ports.items()}
            one = Soak(world, minutes, rate, addresses)
            try:
                await one.settle()
                print(f"{HOMES} homes have settled; {minutes:g} minutes", flush=True)
                await one.run()
                return one, page(one)
            finally:
                for household in one.households:
                    await household.leaves()


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError("it must be a number above 0")
    return number


def main() -> int:
    parser = argparse.ArgumentParser(description="Sign in at a fixed rate for long, and watch the servers.")
    parser.add_argument("--minutes", type=_positive, default=60.0, help="default: %(default)g")
    parser.add_argument(
        "--rate", type=_positive, default=RATE, help="sign-ins a second (default: %(default)s)"
    )
    parser.add_argument("--write", action="store_true", help="put it into benchmarks/RESULTS.md")
    parser.add_argument(
        "--samples", type=Path, metavar="FILE", help="gets what was seen of each server's memory, JSON lines"
    )
    args = parser.parse_args()
    seen, text = asyncio.run(soak(args.minutes, args.rate))
    print(text)
    if args.samples is not None:
        rows = [{"server": name, **asdict(each)} for name, many in seen.samples.items() for each in many]
        args.samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if args.write:
        core.put_section(HEADING, text)
        plots.draw()
    return 0


if __name__ == "__main__":
    sys.exit(main())

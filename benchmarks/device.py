"""What a sign-in costs the device: its start, its memory, what is installed, and where its time goes.

    make bench                                           with the other benchmarks
    PYTHONPATH=examples:. python benchmarks/device.py    measure and print

Starts are processor times of whole processes, in turns with the baseline. Sign-ins are those of the program `headless-passkey`, with
relay, tunnel service, relying party, companion and software phone as programs on the same machine, over TLS. The phone's adverts
come to the device's stdin (`--radio stdin`), so that no emulated controller is in its figures.
"""

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import aiohttp
import core
from certificates import Certificate
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from limited import limits
from measure import HEADINGS, Row, processor_seconds, shown, table, timed
from programs import PROGRAMS, Program, event
from world import World

from headless_passkey.device import Device
from headless_passkey.net.tls import tls_context
from headless_passkey.radio.pipe import parse_advert_line
from headless_passkey.radio.source import Advert
from headless_passkey.rp.key_store import KeyStore

HEADING: Final = "# What a sign-in costs the device"
AIM: Final = 1.15  # times importing aiohttp and bleak alone
STARTS: Final = 15  # turns
SIGN_INS: Final = 10  # on each machine
REST: Final = 1.0  # seconds before a sign-in: a companion reads news without content at most every 0.5 s, also after the last one
IN_ONE_PROCESS: Final = 5  # sign-ins of the SDK, of which the median is taken
TRIPS: Final = 100  # requests, of which the median is taken
ANSWERED: Final = "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"
LIBRARIES: Final = "import aiohttp, bleak"
CRYPTOGRAPHY: Final = "import aiohttp, bleak, cryptography.hazmat.bindings._rust"  # its extension module, and nothing that uses it
FIRST_REQUEST: Final = """
import asyncio, sys
import aiohttp, bleak
async def main():
    async with aiohttp.ClientSession() as session:
        await session.get(sys.argv[1])
asyncio.run(main())
"""


class Used(NamedTuple):
    """What a program took, to its end or until now."""

    seconds: float  # of processor time, of all its threads
    peak: float  # bytes of memory
    passed: float  # seconds since its start


# Starting


def compiled() -> dict[str, str]:
    """The environment of a program whose modules are compiled once and found without `PYTHONPATH`, as those of an installed one are."""
    ours = ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH")
    return {name: value for name, value in os.environ.items() if name not in ours}


def process(*words: str) -> Used:
    """Run a program to its end."""
    began = time.perf_counter()
    with tempfile.NamedTemporaryFile() as result:
        limited = Path(__file__).with_name("limited.py")
        subprocess.run(
            [sys.executable, str(limited), result.name, *words],
            check=True,
            cwd=core.ROOT,
            env=compiled(),
            stdout=subprocess.DEVNULL,
        )
        used = json.loads(result.read())
    return Used(used["seconds"], used["peak"], time.perf_counter() - began)


def imports(code: str) -> Used:
    return process(sys.executable, "-c", code)


async def until_first_request(*words: str, state: Path | None = None) -> Used:
    """Start a program that is given the URL of a server as its last word, and end it when its first request is there.

    state: of a device that has a key for this server, as each has that has been there before.
    """
    used: asyncio.Future[Used] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if not used.done():
            passed = time.perf_counter() - began
            used.set_result(Used(*_so_far(started.pid), passed))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://localhost:{server.sockets[0].getsockname()[1]}"
        if state is not None:
            await KeyStore(state).key(url)
        began = time.perf_counter()
        started = await asyncio.create_subprocess_exec(
            *words,
            url,
            cwd=core.ROOT,
            env=compiled(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(60):
                return await used
        finally:
            if started.returncode is None:
                started.kill()
            await started.wait()


def _so_far(pid: int) -> tuple[float, float]:
    """Processor time of a process, in seconds, and its memory at the peak, in bytes."""
    seconds = processor_seconds(pid)
    status = Path(f"/proc/{pid}/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return seconds, int(peak.split()[1]) * 1024


async def starts(rounds: int) -> list[tuple[str, ...]]:
    """The rows about starting: time and memory of each."""
    with tempfile.TemporaryDirectory() as folder:
        command = (
            *(str(PROGRAMS / "headless-passkey"), "sign-in", "--delivery", "stdout", "--state", f"{folder}/state"),
            "--rp",
        )  # fmt: skip
        bare = (sys.executable, "-c", FIRST_REQUEST)

        async def importing(code: str) -> Used:
            return await asyncio.to_thread(imports, code)

        def asking() -> Awaitable[Used]:
            return until_first_request(*command, state=Path(folder) / "state")

        lines = []
        for what, subject, against, baseline in (
            (
                "`import headless_passkey.device`",
                lambda: importing("import headless_passkey.device"),
                f"`{LIBRARIES}`",
                lambda: importing(LIBRARIES),
            ),
            (
                "the same and `load()`",
                lambda: importing("import headless_passkey.device; headless_passkey.device.load()"),
                f"`{LIBRARIES}`",
                lambda: importing(LIBRARIES),
            ),
            (
                "the libraries and cryptography's extension module",
                lambda: importing(CRYPTOGRAPHY),
                f"`{LIBRARIES}`",
                lambda: importing(LIBRARIES),
            ),
            (
                "`headless-passkey sign-in`, until its first request",
                asking,
                f"`{LIBRARIES}`, and a request",
                lambda: until_first_request(*bare),
            ),
        ):
            pairs = await in_turns(subject, baseline, rounds)
            lines += rows_of(what, against, pairs)
            if subject is asking:
                passed = [(mine.passed, theirs.passed) for mine, theirs in pairs]
                lines.append(Row.of_pairs(f"{what}: time that passes", against, passed, aim=AIM).cells)
    return lines


async def in_turns(
    subject: Callable[[], Awaitable[Used]], baseline: Callable[[], Awaitable[Used]], rounds: int
) -> list[tuple[Used, Used]]:
    pairs = []
    for turn in range(rounds):
        if turn % 2:
            second = await baseline()
            pairs.append((await subject(), second))
        else:
            pairs.append((await subject(), await baseline()))
    return pairs


def rows_of(what: str, against: str, pairs: list[tuple[Used, Used]]) -> list[tuple[str, ...]]:
    """One row of processor time, and one of memory."""
    aim = None if "load()" in what or "extension module" in what else AIM
    seconds = Row.of_pairs(
        f"{what}: processor time",
        against,
        [(mine.seconds, theirs.seconds) for mine, theirs in pairs],
        aim=aim,
    )
    mine, theirs = (median(pair[index].peak for pair in pairs) for index in (0, 1))
    ratio = mine / theirs
    verdict = "" if aim is None else f"at most {aim:g}: {'yes' if ratio <= aim else '**no**'}"
    return [
        seconds.cells,
        (f"{what}: memory at its peak", mib(mine), against, mib(theirs), f"{ratio:.2f}", verdict),
    ]


def mib(size: float) -> str:
    return f"{size / (1 << 20):.1f} MiB"


# What is installed


def installed() -> str:
    """What `pip install '.[device]'` brings, in a sentence, or why that is not known."""
    uv = shutil.which("uv", path=f"{PROGRAMS}:{os.environ['PATH']}")
    if uv is None:
        return "not run: uv is not installed."
    with tempfile.TemporaryDirectory() as name:
        venv = Path(name) / "venv"
        words = ("pip", "install", "--quiet", "--compile-bytecode", "--python", str(venv))
        try:
            subprocess.run([uv, "venv", "--quiet", str(venv)], check=True, capture_output=True)
            subprocess.run([uv, *words, f"{core.ROOT}[device]"], check=True, capture_output=True)
        except subprocess.CalledProcessError as error:
            last = (error.stderr.decode(errors="replace").strip().splitlines() or ["nothing was said"])[-1]
            return f"not run: {last.strip()}"
        (packages,) = venv.glob("lib/python*/site-packages")
        names = [
            each for each in packages.glob("*.dist-info") if not each.name.startswith("headless_passkey")
        ]
        total = sum(each.stat().st_size for each in packages.rglob("*") if each.is_file())
        ours = sum(
            each.stat().st_size for each in (packages / "headless_passkey").rglob("*") if each.is_file()
        )
        largest = sorted(
            ((_size(each), each.name) for each in packages.iterdir() if each.is_dir()), reverse=True
        )[:4]
    parts = ", ".join(f"{part} {mib(size)}" for size, part in largest)
    return f"{len(names)} packages beside ours, {mib(total)} in all with what Python compiles ({parts}; `headless_passkey` itself {mib(ours)})."


def _size(folder: Path) -> int:
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())


# Sign-ins


@dataclass
class SignIns:
    """What sign-ins of the program took, on this machine or on a small board."""

    stages: dict[str, list[float]] = field(default_factory=dict)  # seconds from the ceremony's begin
    whole: list[float] = field(default_factory=list)  # seconds from the start of the program to its end
    seconds: list[float] = field(default_factory=list)  # of processor time
    peak: list[float] = field(default_factory=list)  # bytes
    servers: dict[str, list[float]] = field(default_factory=dict)  # seconds of processor time of each server

    async def one(self, world: World, phone: Program, result: Path, *, board: bool) -> None:
        limited = Path(__file__).with_name("limited.py")
        in_front = [sys.executable, str(limited), str(result), *(["--board"] if board else [])]
        pids = {name: program.process.pid for name, (program, _) in world.servers.items() if name != "radio"}
        await asyncio.sleep(REST)
        before = {name: _so_far(pid)[0] for name, pid in pids.items()}
        began = time.perf_counter()
        device = await world.device("hub", "sign-in", "--radio", "stdin", in_front=in_front)
        await heard(device, phone)
        self.whole.append(time.perf_counter() - began)
        for told in map(event, device.said):
            if told is not None and "elapsed" in told:
                self.stages.setdefault(told["stage"], []).append(float(told["elapsed"]))
        for name, pid in pids.items():
            self.servers.setdefault(name, []).append(_so_far(pid)[0] - before[name])
        used = json.loads(await asyncio.to_thread(result.read_text))
        self.seconds.append(used["seconds"])
        self.peak.append(used["peak"])


async def heard(device: Program, phone: Program) -> None:
    """Let the device hear the phone's adverts until its ceremony has ended; it must end well."""
    assert device.process.stdin is not None
    ends = asyncio.create_task(device.wait())
    while not ends.done():
        line = asyncio.create_task(phone.line())
        await asyncio.wait({line, ends}, return_when=asyncio.FIRST_COMPLETED)
        if line.done():
            device.process.stdin.write(f"{line.result()}\n".encode())
        else:
            line.cancel()
    if await ends != 0:
        raise SystemExit(f"a ceremony failed: {device.last_words}")


@asynccontextmanager
async def household() -> AsyncIterator[tuple[World, Program, Path]]:
    """All programs, a companion that approves at once, and a device that has joined and registered."""
    with tempfile.TemporaryDirectory() as name:
        async with World.start(Path(name)) as world:
            await world.found_account("phone")
            await world.invite("phone", "device", "hub")
            companion = await world.companion("phone", "--radio", "stdout")
            await heard(await world.device("hub", "register", "--user", "ada", "--radio", "stdin"), companion)
            yield world, companion, Path(name)
            await companion.stop()


async def by_stage(world: World, phone: Program, folder: Path, count: int) -> tuple[SignIns, SignIns]:
    """Sign-ins on this machine and on a small board, in turns."""
    here, board = SignIns(), SignIns()
    for _ in range(count):
        await here.one(world, phone, folder / "used.json", board=False)
        await board.one(world, phone, folder / "used.json", board=True)
    return here, board


# What a sign-in needs in any case

CURVE: Final = ec.SECP256R1()


def primitives() -> dict[str, Callable[[], object]]:
    """What each call into cryptography costs that a sign-in makes, by the name that the interpreter has for it."""
    private, peer = ec.generate_private_key(CURVE), ec.generate_private_key(CURVE).public_key()
    point = peer.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    key, nonce, text = bytes(range(32)), bytes(12), bytes(600)
    sealed, seals = AESGCM(key).encrypt(nonce, text, None), AESGCM(key)
    signed = private.sign(text, ec.ECDSA(SHA256()))
    verifies = private.public_key()
    return {
        "generate_private_key": lambda: ec.generate_private_key(CURVE),
        "ECPrivateKey.exchange": lambda: private.exchange(ec.ECDH(), peer),
        "ECPrivateKey.sign": lambda: private.sign(text, ec.ECDSA(SHA256())),
        "ECPublicKey.verify": lambda: verifies.verify(signed, text, ec.ECDSA(SHA256())),
        "from_public_bytes": lambda: ec.EllipticCurvePublicKey.from_encoded_point(CURVE, point),
        "ECPublicKey.public_numbers": peer.public_numbers,
        "ECPublicKey.public_bytes": lambda: peer.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint),
        "ECPrivateKey.public_key": private.public_key,
        "HKDF.derive": lambda: HKDF(algorithm=SHA256(), length=64, salt=key, info=b"").derive(key),
        "AESGCM.encrypt": lambda: seals.encrypt(nonce, text, None),
        "AESGCM.decrypt": lambda: seals.decrypt(nonce, sealed, None),
    }


class Aloud:
    """The radio of a device in this process: it hears what the phone says."""

    def __init__(self, phone: Program) -> None:
        self._phone = phone

    @asynccontextmanager
    async def adverts(self) -> AsyncIterator[AsyncIterator[Advert]]:
        async def spoken() -> AsyncGenerator[Advert, None]:
            while True:
                yield parse_advert_line((await self._phone.line()).encode())

        async with aclosing(spoken()) as adverts:
            yield adverts


@dataclass
class Needs:
    """What a sign-in in this process took, and did."""

    seconds: float
    calls: Counter[str]  # into cryptography
    requests: int
    connections: int  # over TLS


async def needs(world: World, phone: Program) -> Needs:
    """Sign in with the SDK in this process, and count."""
    number, _, base = world.tunnel.partition("=")
    tls = tls_context(world.certificates.ca)
    radio = Aloud(phone)
    calls: Counter[str] = Counter()
    counted = Counter({"requests": 0, "connections": 0})
    loop = asyncio.get_running_loop()
    connect, request = loop.create_connection, aiohttp.ClientSession._request

    async def connecting(*args: Any, **options: Any) -> Any:
        counted["connections"] += options.get("ssl") is not None
        return await connect(*args, **options)

    async def requesting(*args: Any, **options: Any) -> Any:
        counted["requests"] += 1
        return await request(*args, **options)

    def see(_frame: Any, what: str, called: Any) -> None:
        if what == "c_call":
            calls[getattr(called, "__qualname__", "")] += 1

    async with Device.open(world.state("hub"), radio=radio, tunnels={int(number): base}, tls=tls) as device:
        await device.sign_in(world.relying_party)  # what is loaded once
        took = []
        for _ in range(IN_ONE_PROCESS):
            await asyncio.sleep(REST)
            began = time.perf_counter()
            await device.sign_in(world.relying_party)
            took.append(time.perf_counter() - began)
    loop.create_connection = connecting  # type: ignore[method-assign]
    aiohttp.ClientSession._request = requesting  # type: ignore[method-assign]
    try:
        async with Device.open(
            world.state("hub"), radio=radio, tunnels={int(number): base}, tls=tls
        ) as device:
            sys.setprofile(see)
            try:
                await device.sign_in(world.relying_party)
            finally:
                sys.setprofile(None)
    finally:
        loop.create_connection = connect  # type: ignore[method-assign]
        aiohttp.ClientSession._request = request  # type: ignore[method-assign]
    return Needs(
        seconds=median(took),
        calls=Counter({name: calls[name] for name in primitives() if calls[name]}),
        requests=counted["requests"],
        connections=counted["connections"],
    )


async def round_trips(certificate: Certificate) -> tuple[float, float]:
    """Seconds of a request over a connection that is open, and of one that opens its own: a bare server, TLS, loopback."""
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, str(Path(__file__).with_name("bare_server.py"))),
        *(str(certificate.cert), str(certificate.key)),
        stdout=asyncio.subprocess.PIPE,
    )
    assert server.stdout is not None
    try:
        url = (await server.stdout.readline()).decode().strip() + "/v1/inbox"
        times: dict[bool, list[float]] = {}
        for closes in (False, True):
            connector = aiohttp.TCPConnector(ssl=certificate.client_context(), force_close=closes)
            async with aiohttp.ClientSession(connector=connector, headers={"X-Name": "a"}) as session:
                for _ in range(TRIPS):
                    began = time.perf_counter()
                    async with session.get(url) as answer:
                        await answer.read()
                    times.setdefault(closes, []).append(time.perf_counter() - began)
    finally:
        server.kill()
        await server.wait()
    return median(times[False]), median(times[True])


# The page


@dataclass(kw_only=True)
class Found:
    """All that was measured."""

    started: list[tuple[str, ...]]
    packages: str
    here: SignIns
    board: SignIns
    needed: Needs
    trips: tuple[float, float]  # seconds of a request, and of one that opens its connection


def _page(found: Found) -> list[str]:
    here, board, needed = found.here, found.board, found.needed
    costs = {name: median(timed(call, 20) for _ in range(21)) for name, call in primitives().items()}
    cryptography = sum(count * costs[name] for name, count in needed.calls.items())
    kept, opened = found.trips
    network = needed.requests * kept + needed.connections * max(0.0, opened - kept)
    stages = [
        (stage, shown(median(at)), shown(median(board.stages[stage])))
        for stage, at in here.stages.items()
        if len(at) * 2 >= len(here.whole) and stage in board.stages
    ]
    return [
        HEADING,
        "",
        core.made(),
        "",
        table(HEADINGS, found.started),
        "",
        f"Processor times of whole processes, medians of turns. Installed: {found.packages}",
        "The command is that of a device with a key for the relying party, as each has that has been there before. A thread loads the rest while the request is on its way, and its work until then is in these figures.",
        "What is loaded when: [ADR 43](../docs/adr/0043-a-device-loads-when-it-is-opened.md).",
        "",
        "## A sign-in by the program, stage by stage",
        "",
        table(
            ("stage", "at, on this machine", "at, one processor and 512 MiB"),
            [
                *stages,
                (
                    "from the program's start to its end",
                    shown(median(here.whole)),
                    shown(median(board.whole)),
                ),
                ("processor time of the device", shown(median(here.seconds)), shown(median(board.seconds))),
                ("memory at its peak", mib(median(here.peak)), mib(median(board.peak))),
            ],
        ),
        "",
        f"Medians of {len(here.whole)} sign-ins each, in turns, with relay, relying party, tunnel service, companion and software phone as programs on the same processors; the companion approves at once.",
        f"The board is simulated for the device's program alone: one processor by `sched_setaffinity`, its memory by {limits()}; it is this machine's processor, not a board's.",
        "Stages are counted from the ceremony's begin, before which the program is loaded and has found the relying party. The phone's adverts come to the device's stdin as soon as it advertises: there is no radio in these figures, and no Bluetooth library in the memory.",
        "",
        "## What it costs the servers",
        "",
        table(
            ("server", "processor time of one sign-in", "sign-ins a second for each core"),
            [
                (name, shown(median(seconds)), f"{1 / median(seconds):.0f}")
                for name, seconds in here.servers.items()
            ],
        ),
        "",
        "TLS included, in the programs themselves, on connections of one device's program that are new for each sign-in; one sign-in after the other, stores in SQLite on this disk.",
        "",
        "## What it needs in any case",
        "",
        table(
            ("what", "number", "each", "together"),
            [
                *(
                    (name, str(count), shown(costs[name]), shown(count * costs[name]))
                    for name, count in sorted(needed.calls.items())
                ),
                (
                    "request, answered at once",
                    str(needed.requests),
                    shown(kept),
                    shown(needed.requests * kept),
                ),
                (
                    "TCP connection and TLS handshake",
                    str(needed.connections),
                    shown(max(0.0, opened - kept)),
                    shown(needed.connections * max(0.0, opened - kept)),
                ),
                ("**together**", "", "", shown(cryptography + network)),
                ("**`Device.sign_in` until it returns the session**", "", "", shown(needed.seconds)),
            ],
        ),
        "",
        f"The device's calls into cryptography and its requests, counted in one sign-in of the SDK, and each measured alone: the cryptography is {shown(cryptography)}, the network of this machine {shown(network)}.",
        "What is above that is the others' work and the waiting for it (the relay tells the companion, which verifies and approves; the phone advertises, joins the tunnel and signs; the relying party stores), and this SDK.",
    ]


async def measured(rounds: int, count: int) -> list[str]:
    started = await starts(rounds)
    packages = await asyncio.to_thread(installed)
    async with household() as (world, phone, folder):
        here, board = await by_stage(world, phone, folder, count)
        needed = await needs(world, phone)
        trips = await round_trips(world.certificates)
    return _page(
        Found(started=started, packages=packages, here=here, board=board, needed=needed, trips=trips)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what a sign-in costs the device.")
    parser.add_argument("--write", action="store_true", help="put it into benchmarks/RESULTS.md")
    parser.add_argument("--starts", type=int, default=STARTS, metavar="N", help="turns of each start")
    parser.add_argument("--sign-ins", type=int, default=SIGN_INS, metavar="N", help="on each machine")
    args = parser.parse_args()
    page = "\n".join(asyncio.run(measured(args.starts, args.sign_ins))) + "\n"
    print(page)
    if args.write:
        core.put_section(HEADING, page)


if __name__ == "__main__":
    main()

"""What a tunnel costs the tunnel service, against another one: kanidm's, which is written in Rust.

    make bench                                                       with the other benchmarks
    PYTHONPATH=examples:. python benchmarks/tunnels.py               measure and print
    PYTHONPATH=examples:. python benchmarks/tunnels.py --tunnels 50  fewer that are idle

Both run as programs, and all phones and devices are connections of this process, in turns at one and at the other in one run. The
other one is the crate `cable-tunnel-server-backend`, which `cargo install` puts into a cache folder at the first run; without cargo,
or without a network then, the table says so and has our figures alone.
"""

import argparse
import asyncio
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

import aiohttp
import core
from certificates import Certificate, make_certificate
from measure import HEADINGS, Row, processor_seconds, table

from headless_passkey.hybrid.tunnel_url import ROUTING_ID_HEADER, SUBPROTOCOL, connect_url, new_url

HEADING: Final = "# What a tunnel costs the tunnel service"
CRATE: Final = "cable-tunnel-server-backend"
VERSION: Final = "0.1.0"
OTHER: Final = f"{CRATE} {VERSION}"
INSTALLING: Final = 1200.0  # seconds
IDLE: Final = 200  # tunnels
TURNS: Final = 8  # blocks at each service
SESSIONS: Final = 50  # of one block
ROUND_TRIPS: Final = (
    3  # messages each way in a session: the handshake, what comes after it, a command and its answer
)
CARRIERS: Final = 8  # tunnels at the same time whose messages are measured
MESSAGES: Final = 200  # that each end of each of these sends in one block
SIZE: Final = 600  # bytes of a message, about those of a signed answer
AIM_MEMORY: Final = 1.5  # times the other one
AIM_SESSION: Final = 1.5
AIM_MESSAGE: Final = 2.0
AIM_PLAIN: Final = 16.0  # KiB for each end

Socket = aiohttp.ClientWebSocketResponse


@dataclass(frozen=True, kw_only=True)
class Service:
    """A tunnel service that runs as a program, and its callers."""

    url: str
    process: int
    http: aiohttp.ClientSession

    @asynccontextmanager
    async def tunnel(self) -> AsyncIterator[tuple[Socket, Socket]]:
        """Open a tunnel and join it."""
        tunnel_id = os.urandom(16)
        async with self._end(new_url(self.url, tunnel_id)) as first:
            routing_id = bytes.fromhex(first._response.headers[ROUTING_ID_HEADER])
            async with self._end(connect_url(self.url, routing_id, tunnel_id)) as second:
                yield first, second

    @asynccontextmanager
    async def _end(self, url: str) -> AsyncIterator[Socket]:
        async with self.http.ws_connect(url, protocols=(SUBPROTOCOL,), max_msg_size=0) as websocket:
            yield websocket

    def memory(self) -> int:
        """Bytes of the process."""
        return int(Path(f"/proc/{self.process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def processor(self) -> float:
        """Seconds of the process, all its threads."""
        return processor_seconds(self.process)


@dataclass(frozen=True, kw_only=True)
class Program:
    """How a tunnel service is started."""

    name: str
    words: Callable[[int, Certificate | None], list[str]]  # of a port
    newest: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED  # that its callers offer

    @asynccontextmanager
    async def running(self, certificate: Certificate | None) -> AsyncIterator[Service]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        process = await asyncio.create_subprocess_exec(
            *self.words(port, certificate),
            cwd=core.ROOT,
            env={**os.environ, "PYTHONPATH": str(core.ROOT), "RUST_LOG": "error"},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        tls = None
        if certificate is not None:
            tls = certificate.client_context()
            tls.maximum_version = self.newest
        connector = aiohttp.TCPConnector(limit=0, ssl=tls or True, force_close=True)
        try:
            await _listening(port, process)
            async with aiohttp.ClientSession(connector=connector) as http:
                scheme = "ws" if certificate is None else "wss"
                service = Service(url=f"{scheme}://localhost:{port}", process=process.pid, http=http)
                await sessions(service, SESSIONS)  # what is allocated once
                yield service
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _listening(port: int, process: asyncio.subprocess.Process) -> None:
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            if process.returncode is not None:
                raise RuntimeError(f"the service ended with {process.returncode}") from None
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return


def ours(loop: str, newest: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED) -> Program:
    def words(port: int, certificate: Certificate | None) -> list[str]:
        tls = []
        if certificate is not None:
            tls = ["--cert", str(certificate.cert), "--key", str(certificate.key)]
        return [
            *(sys.executable, "-m", "companion_push", "tunnel-service", "--listen", f"127.0.0.1:{port}"),
            *("--rate", "1000000", "--tunnels", "4096", "--tunnels-per-address", "4096"),
            *("--connections", "8192", "--connections-per-address", "8192"),
            *("--event-loop", loop, "--log-level", "warning", *tls),
        ]

    old = newest is ssl.TLSVersion.TLSv1_2
    return Program(name=f"on {loop}" + ", TLS 1.2" * old, words=words, newest=newest)


def other(binary: Path) -> Program:
    def words(port: int, certificate: Certificate | None) -> list[str]:
        tls = ["--insecure-http-server"]
        if certificate is not None:
            tls = ["--tls-public-key", str(certificate.cert), "--tls-private-key", str(certificate.key)]
        limits = ("--max-messages", "255", "--tunnel-ttl", "600", "--max-length", "65536")
        return [str(binary), "--bind-address", f"127.0.0.1:{port}", *limits, *tls]

    return Program(name=OTHER, words=words)


async def sessions(service: Service, number: int) -> None:
    """Have so many sessions one after the other: two handshakes, some messages each way, and the close."""
    for _ in range(number):
        async with service.tunnel() as (first, second):
            await _talk(first, second, ROUND_TRIPS)


async def _talk(first: Socket, second: Socket, times: int) -> None:
    message = bytes(SIZE)
    for _ in range(times):
        await second.send_bytes(message)
        await first.receive_bytes()
        await first.send_bytes(message)
        await second.receive_bytes()


async def cost_of_session(service: Service) -> float:
    """The processor seconds of the service for one session."""
    before = service.processor()
    await sessions(service, SESSIONS)
    return (service.processor() - before) / SESSIONS


async def cost_of_message(service: Service) -> float:
    """The processor seconds of the service for one message, in tunnels that are open."""
    async with AsyncExitStack() as stack:
        pairs = [await stack.enter_async_context(service.tunnel()) for _ in range(CARRIERS)]
        before = service.processor()
        async with asyncio.TaskGroup() as group:
            for first, second in pairs:
                group.create_task(_talk(first, second, MESSAGES))
        return (service.processor() - before) / (CARRIERS * MESSAGES * 2)


async def memory_of_tunnel(service: Service, number: int) -> float:
    """The bytes of the service for a tunnel that has both ends, and in which something was said."""
    before = service.memory()
    async with AsyncExitStack() as stack:
        for _ in range(number):
            pair = await stack.enter_async_context(service.tunnel())
            await _talk(*pair, ROUND_TRIPS)
        return (service.memory() - before) / number


@dataclass(kw_only=True)
class Found:
    """The figures of one program."""

    encrypted: float = 0.0  # bytes for a tunnel under TLS
    plain: float = 0.0  # none was measured where the version of TLS is what makes the difference
    session: list[float] = field(default_factory=list)
    message: list[float] = field(default_factory=list)


async def measured(
    programs: Sequence[Program], certificate: Certificate, *, idle: int, turns: int
) -> list[Found]:
    """Measure these programs: memory of each on a process of its own, and processor time in turns."""
    found = [Found() for _ in programs]
    for program, of in zip(programs, found, strict=True):
        async with program.running(certificate) as service:
            of.encrypted = await memory_of_tunnel(service, idle)
        if program.newest is ssl.TLSVersion.MAXIMUM_SUPPORTED:
            async with program.running(None) as service:
                of.plain = await memory_of_tunnel(service, idle)
    async with AsyncExitStack() as stack:
        services = [await stack.enter_async_context(program.running(certificate)) for program in programs]
        for turn in range(turns):
            order = list(zip(services, found, strict=True))
            for service, of in order[:: -1 if turn % 2 else 1]:
                of.session.append(await cost_of_session(service))
                of.message.append(await cost_of_message(service))
    return found


def installed() -> Path | str:
    """The other service's program, installed at the first call; or why there is none."""
    cache = (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        / "headless-passkey"
        / OTHER.replace(" ", "-")
    )
    binary = cache / "bin" / CRATE
    if binary.exists():
        return binary
    cargo = shutil.which("cargo")
    if cargo is None:
        return "cargo is not installed"
    print(f"installing {OTHER} into {cache}", file=sys.stderr)
    words = [cargo, "install", CRATE, "--version", VERSION, "--locked", "--root", str(cache)]
    try:
        subprocess.run(words, check=True, capture_output=True, timeout=INSTALLING)
    except subprocess.CalledProcessError as error:
        last = (error.stderr.decode(errors="replace").strip().splitlines() or ["nothing"])[-1].strip()
        return f"cargo install ended with {error.returncode}: {last}"
    except subprocess.TimeoutExpired:
        return f"cargo install took longer than {INSTALLING:.0f} s"
    return binary


def rows(names: Sequence[str], found: Sequence[Found]) -> list[tuple[str, ...]]:
    """The rows of the table. names, found: ours first, and the other one last when its name is `OTHER`."""
    theirs = found[-1] if names[-1] == OTHER else None
    lines: list[tuple[str, ...]] = []
    for name, of in zip(names, found, strict=True):
        if of is theirs:
            continue
        lines.append(_memory(f"memory of an idle tunnel under TLS, {name}", of, theirs))
        if of.plain:
            lines.append(
                (
                    f"memory of one end in plain, {name}",
                    _kib(of.plain / 2),
                    "" if theirs is None else OTHER,
                    "" if theirs is None else _kib(theirs.plain / 2),
                    "" if theirs is None else f"{of.plain / theirs.plain:.2f}",
                    _verdict(met=of.plain / 2048 <= AIM_PLAIN, aim=f"at most {AIM_PLAIN:g} KiB"),
                )
            )
        for what, aim, mine, other_ones in (
            ("session", AIM_SESSION, of.session, [] if theirs is None else theirs.session),
            ("message", AIM_MESSAGE, of.message, [] if theirs is None else theirs.message),
        ):
            title = f"processor time of a {what} under TLS, {name}"
            if other_ones:
                lines.append(
                    Row.of_pairs(title, OTHER, list(zip(mine, other_ones, strict=True)), aim=aim).cells
                )
            else:
                lines.append(Row(what=title, seconds=median(mine)).cells)
    return lines


def rates(names: Sequence[str], found: Sequence[Found]) -> list[str]:
    """What a processor does in a second, by the medians."""
    return [
        f"{1 / median(of.session):.0f} and {1 / median(of.message):.0f} ({name})"
        for name, of in zip(names, found, strict=True)
    ]


def _memory(what: str, of: Found, theirs: Found | None) -> tuple[str, ...]:
    if theirs is None:
        return what, _kib(of.encrypted), "", "", "", ""
    ratio = of.encrypted / theirs.encrypted
    verdict = _verdict(met=ratio <= AIM_MEMORY, aim=f"at most {AIM_MEMORY:g}")
    return what, _kib(of.encrypted), OTHER, _kib(theirs.encrypted), f"{ratio:.2f}", verdict


def _kib(size: float) -> str:
    return f"{size / 1024:.1f} KiB"


def _verdict(*, met: bool, aim: str) -> str:
    return f"{aim}: {'yes' if met else '**no**'}"


def _page(
    lines: list[tuple[str, ...]], in_a_second: Sequence[str], why_not: str | None, idle: int
) -> list[str]:
    left_out = "" if why_not is None else f" {OTHER} was not run: {why_not}."
    return [
        HEADING,
        "",
        core.made() + left_out,
        "",
        table(HEADINGS, lines),
        "",
        f"Memory is what {idle} tunnels with both ends add to a process that has served {SESSIONS} sessions. A session is two handshakes, {ROUND_TRIPS} messages each way and the close, one session after the other;",
        f"messages of {SIZE} bytes go to and fro in {CARRIERS} tunnels at the same time. Both services run as programs beside each other, and have their turns in one run, with one load generator; processor time is the service's alone.",
        f"In a second a processor that does nothing else opens, serves and ends so many tunnels, or forwards so many messages: {'; '.join(in_a_second)}.",
        f"Callers take TLS 1.3, which {OTHER} does not speak, or 1.2 where a row says so: that is what both do alike, by one OpenSSL, with a P-256 certificate, X25519 and session tickets that nobody uses.",
        "Where an aim is missed, and what other libraries would give: [ADR 50](../docs/adr/0050-the-tunnel-service-has-a-websocket-of-its-own.md), [ADR 34](../docs/adr/0034-the-tunnel-service-stays-on-aiohttp.md).",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what a tunnel costs the tunnel service.")
    parser.add_argument("--write", action="store_true", help="put it into benchmarks/RESULTS.md")
    parser.add_argument(
        "--tunnels", type=int, default=IDLE, metavar="N", help=f"tunnels that are idle; default: {IDLE}"
    )
    args = parser.parse_args()
    binary = installed()
    programs = [ours("uvloop"), ours("uvloop", ssl.TLSVersion.TLSv1_2), ours("asyncio")]
    why_not = binary if isinstance(binary, str) else None
    if isinstance(binary, Path):
        programs.append(other(binary))
    with tempfile.TemporaryDirectory() as folder:
        certificate = make_certificate(Path(folder))
        found = asyncio.run(measured(programs, certificate, idle=args.tunnels, turns=TURNS))
    names = [program.name for program in programs]
    page = "\n".join(_page(rows(names, found), rates(names, found), why_not, args.tunnels)) + "\n"
    print(page)
    if args.write:
        core.put_section(HEADING, page)


if __name__ == "__main__":
    main()

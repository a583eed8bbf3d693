"""An upgrade that is a connection's first request: a tunnel service takes it before aiohttp's server sees it, and whatever it does not take is
answered as ever.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from companion_push.serving.http_server import Runner
from companion_push.tunnel_service.app import make_app
from companion_push.tunnel_service.contacts import ContactLimits, KnownContacts
from companion_push.tunnel_service.rendezvous import Limits
from companion_push.waking import SUBPROTOCOL
from http_serving.connections import ConnectionLimits
from http_serving.first_request import _upgrade
from tests.loop_clock import LoopClock
from tests.tunnel_service.both_ways import outcomes
from tests.tunnel_service.by_program import listen
from tests.tunnel_service.test_memory import UPGRADE
from tests.tunnel_service.test_websocket import Raw, frame

NUMBER = "00112233445566778899AABBCCDDEEFF"
NEW = f"GET /cable/new/{NUMBER} HTTP/1.1\r\n{UPGRADE}"
HEAD = 300.0  # seconds for one, by a clock that the test moves on


def other(number: int) -> str:
    return NEW.replace(NUMBER, f"{number:032X}")


# one after the other, each on a connection of its own: its parts, between which the server reads
REQUESTS = {
    "an upgrade": [NEW],
    "the same tunnel again": [NEW],
    "in parts": [other(1)[:70], other(1)[70:]],
    "with a message behind it": [other(2) + frame(2, b"early").decode("latin-1")],
    "a tunnel that is not there": [NEW.replace("new/", "connect/000000/")],
    "no tunnel ID": [NEW.replace(NUMBER, "00")],
    "with a query": [other(3).replace(" HTTP", "?a=b HTTP")],
    "in absolute form": [other(4).replace("/cable", "http://x/cable", 1)],
    "another method": [other(5).replace("GET", "POST", 1)],
    "an older version of HTTP": [other(6).replace("HTTP/1.1", "HTTP/1.0")],
    "with an expectation": [other(7).replace("Host", "Expect: 100-continue\r\nHost", 1)],
    "with an expectation that nobody meets": [other(8).replace("Host", "Expect: more\r\nHost", 1)],
    "with a body": [other(9).replace("Host", "Content-Length: 5\r\nHost", 1) + "early"],
    "with a body in chunks": [
        other(10).replace("Host", "Transfer-Encoding: chunked\r\nHost", 1) + "0\r\n\r\n"
    ],
    "with two lengths": [other(11).replace("Host", "Content-Length: 0\r\nContent-Length: 1\r\nHost", 1)],
    "another upgrade": [other(12).replace("websocket", "h2c")],
    "another subprotocol": [other(13).replace("fido.cable", "chat")],
    "another version of websockets": [other(14).replace("Version: 13", "Version: 8")],
    "no key": [other(15).replace("AAAAAAAAAAAAAAAAAAAAAA==", "AAAA")],
    "a name with a space": [other(16).replace("Host:", "Host :", 1)],
    "a line that goes on": [other(17).replace("Host: x", "Host: x\r\n y", 1)],
    "lines that end otherwise": [other(18).replace("\r\n", "\n")],
    "a head that ends otherwise": [other(19).replace("\r\n", "\n") + "\r\n\r\n"],
    "a line that is too long": [other(20).replace("Host", f"A: {'a' * 10_000}\r\nHost", 1)],
    "too many lines": [other(21).replace("Host", "A: a\r\n" * 200 + "Host", 1)],
    "no upgrade": ["GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"],
    "one after no upgrade": ["GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" + other(22)],
    "no HTTP": ["\0\r\n\r\n"],
    "an empty line first": ["\r\n" + other(23)],
}


# what may stand in the place of a line's value
ODD = {
    "Host": ["", "x:1", "a b", "[::1", "x,y", "\xff", "http://x"],
    "Connection": [
        *("upgrade", "keep-alive, Upgrade", "close, Upgrade", "close", ",Upgrade,", "Upgrade;q=1", "x\xff, Upgrade"),
        *("Transfer-Encoding, Upgrade", "Upgradeclose"),
    ],
    "Upgrade": [
        *("WebSocket", "websocket, h2c", "h2c, websocket", "websocket/13", "tcp", "tcp, websocket", "h2c", ""),
        "web\xc5\xbfocket",  # whose second s is a small s elsewhere
    ],
    "Sec-WebSocket-Version": ["8", "13, 8", "013", " 13 ", "\xd9\xa1\xd9\xa3", ""],
    "Sec-WebSocket-Key": ["AAAA", "AAAA AAAAAAAAAAAAAAAAAA==", "AAAAAAAAAAAAAAAAAAAAAB==", "____AAAAAAAAAAAAAAAAAA==", "\xff", ""],
    "Sec-WebSocket-Protocol": ["chat, fido.cable", "FIDO.CABLE", ",,fido.cable", "chat", "fido.cable;x", "fido.cable\xa0"],
}  # fmt: skip
MORE = [
    *("Content-Length: 0", "Content-Length: 5", "Content-Length: +5", "Content-Length: 5, 5", f"Content-Length: {1 << 64}"),
    *("Transfer-Encoding: chunked", "Transfer-Encoding: gzip, chunked", "Transfer-Encoding: identity"),
    *("Expect: 100-continue", "Expect: more", "Expect: \xff", "Connection: close", "Upgrade: h2c", "Host: y"),
    *("Sec-WebSocket-Version: 8", "Sec-WebSocket-Key: BAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Key1: x"),
    *("Sec-WebSocket-Protocol: chat", "Sec-WebSocket-Extensions: permessage-deflate", "Content-Encoding: gzip"),
    *("X-Forwarded-For: 192.0.2.9", "HTTP2-Settings: x", "Cookie: a=\xff", ": x", "A b: c", "a\0: b", "A: \0", "A: \x0b", " A: b"),
    *("A: b\r\n c", "A: b\r\n\tc", "A: b\rB: c", f"A: {'a' * 8189}", f"A: {'a' * 9000}", f"{'A' * 9000}: b", "\r\n".join(["A: b"] * 121)),
]  # fmt: skip
TUNNEL = f"/cable/new/{NUMBER}"
BEGINNINGS = [
    *(f"{method} {TUNNEL} HTTP/1.1" for method in ("get", "POST", "HEAD", "OPTIONS", "CONNECT", "PRI", "", "G ET")),
    *(f"GET {TUNNEL} {version}" for version in ("HTTP/1.0", "HTTP/1.2", "HTTP/2.0", "http/1.1", "HTTP/11.1", "RTSP/1.0", "")),
    *(
        f"GET {target} HTTP/1.1"
        for target in (
            *("*", "", "/livez", "x:1", "/cable/phone", "/cable/contact/AQIDBA", f"/cable/connect/000000/{NUMBER}"),
            *(f"http://x{TUNNEL}", f"//x{TUNNEL}", f"http://[{TUNNEL}", f"{TUNNEL}?a", f"{TUNNEL}#a", f"{TUNNEL}/", f"/{TUNNEL}"),
            *(TUNNEL.lower(), TUNNEL.replace("0", "%30", 1), TUNNEL.replace("c", "%63", 1), f"{TUNNEL}\xff", f"/x/..{TUNNEL}"),
        )
    ),
]  # fmt: skip
BEHIND = [
    *(frame(2, b"early"), frame(9, b"ping"), frame(8, b"\x03\xe8"), frame(8), frame(1, b"text"), frame(0, b"a part")),
    *(frame(2, b"a part", last=False), frame(2, bytes(60_000)), frame(2, bytes(70_000)), frame(3), frame(2, b"half")[:-2]),
    *(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", other(1).encode(), b"early", b"5\r\nearly\r\n0\r\n\r\n", b"0\r\n\r\n", b"\r\n", b"\0"),
]  # fmt: skip


@st.composite
def connections(draw: st.DrawFn) -> list[bytes]:
    """What a connection says, part by part: an upgrade with up to three changes, and what comes behind it."""
    beginning, *lines = NEW.rstrip().split("\r\n")
    ends = ["\r\n"] * (len(lines) + 10)
    for change in draw(st.lists(st.sampled_from(range(7)), max_size=3)):
        place = draw(st.integers(0, len(lines) - 1))
        match change:
            case 0:
                beginning = draw(st.sampled_from(BEGINNINGS))
            case 1:
                name = lines[place].partition(":")[0]
                lines[place] = f"{name}: {draw(st.sampled_from(ODD.get(name, [''])))}"
            case 2:
                lines.insert(place, draw(st.sampled_from(MORE)))
            case 3:
                lines = [*draw(st.permutations(lines)), *lines[place : place + draw(st.integers(0, 1))]]
            case 4:
                name, colon, value = lines[place].partition(":")
                lines[place] = (name.lower() if draw(st.booleans()) else name.swapcase()) + colon + value
            case 5:
                lines[place] = lines[place].replace(
                    ": ", draw(st.sampled_from((":", ":\t", " : ", "", ":\r\n "))), 1
                )
            case 6:
                ends[place] = draw(
                    st.sampled_from(("\n", "\r", "\r\r\n", "\n\r", " \r\n", "\xa0\r\n", "\0\r\n"))
                )
    head = "".join(map("".join, zip([beginning, *lines], ends, strict=False))).encode("latin-1") + b"\r\n"
    before = draw(
        st.sampled_from((b"", b"", b"", b"\r\n", b"\n", b" ", b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"))
    )
    said = before + head + b"".join(draw(st.lists(st.sampled_from(BEHIND), max_size=4)))
    if draw(st.sampled_from((False, False, False, True))):
        place = draw(st.integers(0, min(len(said), 500)))
        said = said[:place] + draw(st.binary(max_size=3)) + said[place + draw(st.integers(0, 3)) :]
    if draw(st.sampled_from((False, False, False, True))) and len(said) < 1000:
        return [said[place : place + 1] for place in range(len(said))]
    at = len(before + head)
    cuts = draw(
        st.lists(st.one_of(st.integers(max(0, at - 5), at + 5), st.integers(0, len(said))), max_size=4)
    )
    return [said[start:stop] for start, stop in pairwise([0, *sorted(cuts), len(said)]) if start < stop]


class Service:
    """A tunnel service that is served as the program serves it."""

    def __init__(self, runner: Runner, port: int, why: list[str]) -> None:
        self.runner, self.port, self.why = runner, port, why
        self.writers: list[asyncio.StreamWriter] = []

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers.append(writer)
        return reader, writer

    async def ask(self, *parts: str) -> str:
        """The answer to a request, without what differs each time. The connection stays open."""
        served = self.served
        reader, writer = await self.connect()
        for number, part in enumerate(parts):
            if number:
                await self.until_served(served + 1)
            writer.write(part.encode("latin-1"))
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = re.search(r"Content-Length: (\d+)", head)
            body = (await reader.readexactly(int(length[1]))).decode() if length else ""
        except (asyncio.IncompleteReadError, ConnectionError):
            return ""
        return re.sub(r"Date: .*\r\n", "", re.sub(r"(Routing-ID: )\w{6}", r"\1", head)) + body

    @property
    def served(self) -> int:
        """The connections that aiohttp's server has."""
        return len(self.runner.server.connections) if self.runner.server else 0

    async def until_served(self, number: int) -> None:
        while self.served != number:  # noqa: ASYNC110  it tells nobody
            await asyncio.sleep(0)

    async def until_connections(self, number: int) -> None:
        while len(self.runner.connections) != number:  # noqa: ASYNC110  as above
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def serving(
    *, first: bool = True, per_address: int = 512, contacts: KnownContacts | None = None, **limits: float
) -> AsyncIterator[Service]:
    """first: take upgrades before aiohttp's server sees them, as the program does."""
    why: list[str] = []
    runner = Runner(
        make_app(Limits(**limits), contacts=contacts),  # type: ignore[arg-type]
        shutdown_timeout=1,
        limits=ConnectionLimits(per_address=per_address, head=HEAD),
        closed=why.append,
    )
    await runner.setup()
    try:
        if first:
            port = await listen(runner)
        else:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            port = runner.addresses[0][1]
        service = Service(runner, port, why)
        try:
            yield service
        finally:
            for writer in service.writers:
                writer.transport.abort()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()
    finally:
        await runner.cleanup()


@pytest.mark.threat("T12")
async def test_each_request_is_answered_as_aiohttps_server_answers_it() -> None:
    async with serving() as taking, serving(first=False) as by_aiohttp:
        statuses = set()
        for kind, parts in REQUESTS.items():
            answer = await taking.ask(*parts)
            assert answer == await by_aiohttp.ask(*parts), kind
            statuses.add(answer[9:12])
        assert statuses == {"100", "101", "204", "400", "404", "405", "409", "417"}


@pytest.mark.threat("T12")
@given(connections())
def test_whatever_a_connection_says_and_however_it_arrives_it_is_told_what_aiohttps_server_tells_it(
    parts: list[bytes],
) -> None:
    taking, by_aiohttp = asyncio.run(outcomes(parts))
    assert taking == by_aiohttp


async def test_an_upgrade_that_is_taken_never_comes_to_aiohttps_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served: list[object] = []
    made = web.RequestHandler.connection_made

    def noted(self: web.RequestHandler, transport: asyncio.BaseTransport) -> None:
        served.append(self)
        made(self, transport)

    monkeypatch.setattr(web.RequestHandler, "connection_made", noted)
    async with serving() as service:
        first = await Raw.call(service.port, f"/cable/new/{NUMBER}", frame(2, b"early"))
        second = await Raw.call(service.port, f"/cable/connect/{first.routing_id}/{NUMBER}")
        assert await second.frame() == (2, b"early")
        assert served == []
        assert "200" not in await service.ask(NEW)
        assert len(served) == 1
        for end in (first, second):
            end.writer.transport.abort()


@pytest.mark.threat("T12")
@pytest.mark.parametrize("path", [f"/cable/new/{NUMBER}", "/cable/phone"], ids=["an end", "a phone"])
@pytest.mark.parametrize("line", ["Content-Length: 5", "Transfer-Encoding: chunked"])
async def test_an_upgrade_with_a_body_is_refused_before_its_body_has_come(
    path: str, line: str, tmp_path: Path
) -> None:
    contacts = KnownContacts(tmp_path / "contacts", ContactLimits())
    async with serving(contacts=contacts) as service:
        protocol = "fido.cable" if "new" in path else SUBPROTOCOL
        request = NEW.replace(f"/cable/new/{NUMBER}", path).replace("fido.cable", protocol)
        assert (await service.ask(request))[9:12] == "101"
        answer = await service.ask(request.replace(NUMBER, "F" * 32).replace("Host", f"{line}\r\nHost", 1))
        assert answer[9:12] == "400"


@pytest.mark.threat("T17")
async def test_an_upgrade_that_is_refused_counts_once_against_its_address() -> None:
    async with serving(rate=3) as service:
        answers = [await service.ask(request) for request in (NEW, NEW, other(1), other(2))]
        assert [answer.split()[1] for answer in answers] == ["101", "409", "101", "429"]


@pytest.mark.threat("T12")
@given(
    st.one_of(
        st.binary(),
        st.tuples(st.integers(0, len(NEW)), st.binary()).map(
            lambda change: NEW.encode()[: change[0]] + change[1] + NEW.encode()[change[0] :]
        ),
    )
)
def test_any_head_is_an_upgrade_or_none(head: bytes) -> None:
    loop = asyncio.new_event_loop()
    try:
        message = _upgrade(head + b"\r\n\r\n", loop)
    finally:
        loop.close()
    assert message is None or message.upgrade


@pytest.mark.threat("T12")
@pytest.mark.parametrize("said", ["", "GET /cable"], ids=["nothing", "half a head"])
async def test_a_first_head_has_its_time_once(said: str) -> None:
    clock = LoopClock(asyncio.get_running_loop())
    async with serving() as service:
        reader, writer = await service.connect()
        await service.until_connections(1)
        clock.passes(HEAD - 100)
        if said:
            writer.write(said.encode())
            await service.until_served(1)
        assert not service.why
        clock.passes(150)
        assert await reader.read() == b""
        assert service.why == ["head"]


@pytest.mark.threat("T17")
async def test_a_connection_that_has_said_nothing_makes_room_for_another_one() -> None:
    async with serving(per_address=1) as service:
        reader, writer = await service.connect()
        await service.until_connections(1)
        end = await Raw.call(service.port, f"/cable/new/{NUMBER}")
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        assert service.why == ["evicted"]
        for each in (writer, end.writer):
            each.transport.abort()
        await service.until_connections(0)


async def test_a_service_that_ends_ends_the_connections_that_have_said_nothing() -> None:
    async with serving() as service:
        reader, _ = await service.connect()
        await service.until_connections(1)
        await service.runner.cleanup()
        assert await reader.read() == b""
        await service.until_connections(0)

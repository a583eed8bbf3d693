"""Names are looked up in threads that keep no program from its end, one for each name."""

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import aiohttp
import pytest

from headless_passkey.errors import TransportError, TransportReason
from headless_passkey.net.connector import Connector
from headless_passkey.net.proven_http import open_session
from headless_passkey.net.proxy import sending, tracing
from name_lookups import resolver
from name_lookups.resolver import Lookups, NoAnswer, Resolver

PATIENCE = 60.0  # seconds; a safety net

SILENT = """
import asyncio, contextlib, socket, threading
from headless_passkey.net.proven_http import open_session
from headless_passkey.net.proxy import sending
from headless_passkey.net.tunnel import open_tunnel

def silent(*_, **__):
    print("asked", flush=True)
    threading.Event().wait()

@contextlib.asynccontextmanager
async def asking():
    async with open_session(None) as http, sending(http, "GET", "https://login.example"):
        yield

async def main():
    for opening in (asking(), open_tunnel("wss://tunnel.example/cable", connect_timeout=0.1)):
        try:
            async with asyncio.timeout(1), opening:
                pass
        except Exception as error:
            print(type(error).__name__)

socket.getaddrinfo = silent
asyncio.run(main())
print("ended")
"""


def test_a_program_ends_although_no_name_server_answers() -> None:
    program = [sys.executable, "-c", SILENT]
    ended = subprocess.run(program, check=True, capture_output=True, timeout=PATIENCE, text=True)
    assert ended.stdout.split() == ["asked", "TimeoutError", "asked", "TransportError", "ended"]


FORKS = """
import asyncio, os, socket, threading
from name_lookups.resolver import Resolver

def silent(*_, **__):
    threading.Event().wait()

async def asked(seconds):
    async with asyncio.timeout(seconds):
        return await Resolver().resolve("login.example", 443)

answers = socket.getaddrinfo
socket.getaddrinfo = silent
try:
    asyncio.run(asked(0.1))
except TimeoutError:
    print("left", flush=True)
child = os.fork()
if not child:
    socket.getaddrinfo = lambda host, port, **how: answers("127.0.0.1", port, **how)
    print(asyncio.run(asked(30))[0]["host"], flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


def test_a_child_process_asks_anew_for_what_its_parent_has_asked() -> None:
    program = [sys.executable, "-W", "ignore", "-c", FORKS]
    ended = subprocess.run(program, check=True, capture_output=True, timeout=PATIENCE, text=True)
    assert ended.stdout.split() == ["left", "127.0.0.1"]


class NameServer:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.may_answer = threading.Event()

    def resolve(self, host: str, port: int, **_: Any) -> list[Any]:
        self.asked.append(host)
        if self.answers_at_once(host):
            return self._found(port)
        self.may_answer.wait(PATIENCE)
        if host == "nobody.example":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return self._found(port)

    def answers_at_once(self, host: str) -> bool:
        return host.startswith("living")

    def _found(self, port: int) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("192.0.2.1", port))]


@contextmanager
def a_name_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    server = NameServer()
    monkeypatch.setattr(socket, "getaddrinfo", server.resolve)
    try:
        yield server
    finally:
        server.may_answer.set()
        for thread in threading.enumerate():
            if thread.name == "lookup":  # which the next test would ask the same name
                thread.join(PATIENCE)


async def test_a_name_is_asked_for_once_at_a_time_and_who_leaves_takes_the_answer_from_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with a_name_server(monkeypatch) as server:
        first, second, other = (
            asyncio.create_task(Resolver().resolve(host, 443, socket.AF_UNSPEC))
            for host in ("a.example", "a.example", "b.example")
        )
        await asyncio.sleep(0)
        first.cancel()
        with suppress(asyncio.CancelledError):
            await first
        again = asyncio.create_task(Resolver().resolve("a.example", 443, socket.AF_UNSPEC))
        await asyncio.sleep(0)
        server.may_answer.set()
        found = [answer[0]["host"] for answer in await asyncio.gather(second, other, again)]
        assert found == ["192.0.2.1"] * 3
        assert sorted(server.asked) == ["a.example", "b.example"]
        await Resolver().resolve("a.example", 443, socket.AF_UNSPEC)
        assert server.asked.count("a.example") == 2  # an answer is not kept
    assert resolver.OURS._asked == {}


async def look_up(lookups: Lookups, host: str, share: str = "") -> str:
    found = await lookups.getaddrinfo(host, 443, share=share)
    return str(found[0][4][0])


def dead(
    lookups: Lookups, numbers: Iterable[int], share: Callable[[int], str] = lambda _: ""
) -> list["asyncio.Task[str]"]:
    """Lookups of names whose servers do not answer."""
    return [
        asyncio.create_task(look_up(lookups, f"dead{number}.example", share(number))) for number in numbers
    ]


async def test_as_many_names_are_looked_up_at_a_time_as_there_are_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lookups = Lookups(most=3)
    with a_name_server(monkeypatch) as server:
        waiting = dead(lookups, range(5))
        await asyncio.sleep(0)
        assert sum(lookups._running.values()) == 3
        assert [number for number, one in enumerate(lookups._asked.values()) if not one.began] == [3, 4]
        server.may_answer.set()
        assert await asyncio.gather(*waiting) == ["192.0.2.1"] * 5
    assert (lookups._asked, lookups._waiting, lookups._running) == ({}, {}, {})


async def test_who_does_not_get_an_answer_in_time_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    lookups = Lookups(most=1, seconds=0.2)
    with a_name_server(monkeypatch):
        asked, waits = await asyncio.gather(*dead(lookups, range(2)), return_exceptions=True)
        for failed, why in ((asked, "its name server does not answer"), (waits, "too many other names")):
            assert isinstance(failed, NoAnswer)
            assert failed.errno == socket.EAI_AGAIN
            assert why in str(failed)
        assert lookups._waiting == {}  # nobody waits for the second any more
        assert [*lookups._asked] == [("dead0.example", 443)]  # whose thread goes on, and counts


async def test_an_answer_that_does_not_come_in_time_is_in_the_error_of_a_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lookups = Lookups(seconds=0.1)
    connector = Connector(resolver=Resolver(lambda _: (lookups, None)))
    with a_name_server(monkeypatch):
        async with aiohttp.ClientSession(connector=connector, trace_configs=[tracing()]) as http:
            with pytest.raises(TransportError, match="its name server does not answer") as refused:
                async with sending(http, "GET", "https://dead.example"):
                    pass
    assert refused.value.reason is TransportReason.NAME_NOT_RESOLVED


async def test_dead_names_of_one_share_keep_no_other_from_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    lookups = Lookups(most=4, most_of_share=3)
    with a_name_server(monkeypatch) as server:
        waiting = dead(lookups, range(20), lambda _: "mallory")
        await asyncio.sleep(0)
        async with asyncio.timeout(PATIENCE):
            assert await look_up(lookups, "living.example", "anna") == "192.0.2.1"
        assert lookups._running["mallory"] == 3
        server.may_answer.set()
        await asyncio.gather(*waiting)
    assert lookups._running == {}


async def test_a_name_that_waits_in_one_share_is_looked_up_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lookups = Lookups(most=2, most_of_share=1)
    with a_name_server(monkeypatch) as server:
        waiting = dead(lookups, range(1), lambda _: "mallory")
        hers = asyncio.create_task(look_up(lookups, "living.example", "mallory"))
        await asyncio.sleep(0)
        async with asyncio.timeout(PATIENCE):
            assert await look_up(lookups, "living.example", "anna") == await hers
        assert server.asked.count("living.example") == 1
        server.may_answer.set()
        await asyncio.gather(*waiting)
    assert (lookups._asked, lookups._waiting, lookups._running) == ({}, {}, {})


async def test_shares_that_wait_have_the_next_thread_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    lookups = Lookups(most=1)
    with a_name_server(monkeypatch) as server:
        first = dead(lookups, [0], lambda _: "mallory")
        await asyncio.sleep(0)
        waiting = dead(lookups, range(1, 5), lambda _: "mallory")
        await asyncio.sleep(0)
        hers = asyncio.create_task(look_up(lookups, "anna.example", "anna"))
        await asyncio.sleep(0)
        server.may_answer.set()
        await asyncio.gather(hers, *first, *waiting)
    assert server.asked[:3] == ["dead0.example", "dead1.example", "anna.example"]


async def test_an_address_needs_no_thread() -> None:
    lookups = Lookups(most=0)
    for address in ("192.0.2.7", "::1", "fe80::1%lo"):
        found = await lookups.getaddrinfo(address, 443, type=socket.SOCK_STREAM)
        assert found[0][4][1] == 443


async def test_an_unknown_name_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    with a_name_server(monkeypatch) as server:
        server.may_answer.set()
        async with open_session(None) as http:
            with pytest.raises(TransportError) as refused:
                async with sending(http, "GET", "https://nobody.example"):
                    pass
        assert refused.value.reason is TransportReason.NAME_NOT_RESOLVED


def test_a_thread_waits_until_the_system_has_asked_a_second_name_server() -> None:
    first_server = 5  # seconds (resolv.conf(5), `timeout`); the third of three has its turn after 8
    assert 2 * first_server <= resolver.THREAD_SECONDS


def test_a_thread_waits_for_several_names_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "THREAD_SECONDS", 3600.0)
    lookups, dead = Lookups(), ["dead0.example", "dead1.example"]
    with a_name_server(monkeypatch) as server:
        known = lookups.addresses(["192.0.2.7", "living.example"])
        assert known == {"192.0.2.7": ["192.0.2.7"], "living.example": ["192.0.2.1"]}
        found = lookups.addresses(dead, lambda: len(server.asked) == 3)
        assert [str(found[host]) for host in dead] == ["its name server does not answer"] * 2


async def test_a_system_without_threads_is_a_failure_to_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none_left)
        with pytest.raises(OSError, match="no thread"):
            await Resolver().resolve("a.example", 443, socket.AF_UNSPEC)
    assert resolver.OURS._asked == {}


async def test_an_address_of_a_link_keeps_its_scope() -> None:
    index, name = socket.if_nameindex()[0]
    (found,) = await Resolver().resolve(f"fe80::1%{name}", 443, socket.AF_INET6)
    assert (found["host"], index) == (f"fe80::1%{name}", index)

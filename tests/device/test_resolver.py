"""Names are looked up in threads that keep no program from its end, one for each name."""

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from headless_passkey.errors import TransportError, TransportReason
from headless_passkey.net import resolver
from headless_passkey.net.proven_http import open_session
from headless_passkey.net.proxy import sending
from headless_passkey.net.resolver import Resolver

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
from headless_passkey.net.resolver import Resolver

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
        self.may_answer.wait(PATIENCE)
        if host == "nobody.example":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("192.0.2.1", port))]


@contextmanager
def a_name_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    server = NameServer()
    monkeypatch.setattr(socket, "getaddrinfo", server.resolve)
    try:
        yield server
    finally:
        server.may_answer.set()


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
    assert resolver._asked == {}


async def test_an_unknown_name_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    with a_name_server(monkeypatch) as server:
        server.may_answer.set()
        async with open_session(None) as http:
            with pytest.raises(TransportError) as refused:
                async with sending(http, "GET", "https://nobody.example"):
                    pass
        assert refused.value.reason is TransportReason.NAME_NOT_RESOLVED


async def test_a_system_without_threads_is_a_failure_to_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none_left)
        with pytest.raises(OSError, match="no thread"):
            await Resolver().resolve("a.example", 443, socket.AF_UNSPEC)
    assert resolver._asked == {}


async def test_an_address_of_a_link_keeps_its_scope() -> None:
    index, name = socket.if_nameindex()[0]
    (found,) = await Resolver().resolve(f"fe80::1%{name}", 443, socket.AF_INET6)
    assert (found["host"], index) == (f"fe80::1%{name}", index)

"""A junction carries all that comes, knows who calls, and cuts, swallows and deafens for one of them alone."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest

from tests.chaos.junction import Junction, Trouble, caller, family, sockets

ME = "this test"


@dataclass
class Echo:
    """A server that sends back what comes; and a junction in front of it."""

    junction: Junction
    ended: asyncio.Event = field(default_factory=asyncio.Event)  # a connection's end has come to the server

    @asynccontextmanager
    async def call(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.junction.port)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    async with Junction.open(lambda: {os.getpid(): ME}) as junction:
        one = Echo(junction)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while data := await reader.read(1 << 16):
                    writer.write(data)
                    await writer.drain()
            except ConnectionError:
                pass
            finally:
                one.ended.set()
                writer.transport.abort()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            junction.targets = (server.sockets[0].getsockname()[1],)
            yield one


async def test_what_is_sent_comes_and_the_end_too(echo: Echo) -> None:
    async with echo.call() as (reader, writer):
        data = os.urandom(1 << 20)
        writer.write(data)
        assert await reader.readexactly(len(data)) == data
        (call,) = echo.junction.calls
        assert call.party == ME
        writer.write_eof()
        await echo.ended.wait()
        assert await reader.read() == b""


async def test_a_cut_link_breaks_and_is_not_made_again(echo: Echo) -> None:
    async with echo.call() as (reader, writer):
        writer.write(b"a")
        assert await reader.readexactly(1) == b"a"
        echo.junction.troubles[ME] = Trouble(cut=True)
        echo.junction.break_calls(ME)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        await echo.ended.wait()
    async with echo.call() as (reader, writer):
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
    assert echo.junction.troubles[ME].met == 2, "one connection broke, one was not made"
    echo.junction.troubles.clear()
    async with echo.call() as (reader, writer):
        writer.write(b"b")
        assert await reader.readexactly(1) == b"b"


async def test_what_is_swallowed_never_comes_and_its_connection_breaks_when_that_is_over(echo: Echo) -> None:
    async with echo.call() as (reader, writer):
        writer.write(b"a")
        assert await reader.readexactly(1) == b"a"
        (call,) = echo.junction.calls
        echo.junction.troubles[ME] = Trouble(swallows=True)
        writer.write(b"b")
        while not call.swallowed:  # noqa: ASYNC110  nobody tells it
            await asyncio.sleep(0)
        assert echo.junction.troubles[ME].met == 1
        echo.junction.troubles.clear()
        echo.junction.break_calls(ME, swallowed_only=True)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)


async def test_what_is_delayed_comes_and_each_piece_counts(echo: Echo) -> None:
    echo.junction.troubles[ME] = trouble = Trouble(delay=0.01)
    async with echo.call() as (reader, writer):
        writer.write(b"a")
        assert await reader.readexactly(1) == b"a"
        assert trouble.met == 2, "there and back"


async def test_trouble_of_another_one_is_none(echo: Echo) -> None:
    echo.junction.troubles["somebody else"] = Trouble(cut=True, swallows=True, delay=3600)
    async with echo.call() as (reader, writer):
        writer.write(b"a")
        echo.junction.break_calls("somebody else")
        assert await reader.readexactly(1) == b"a"
        assert echo.junction.troubles["somebody else"].met == 0


async def test_a_deaf_host_gets_everything_but_adverts(echo: Echo) -> None:
    echo.junction.hci = True
    advert = bytes([0x04, 0x3E, 3, 0x0D, 1, 2])
    connected, completed = bytes([0x04, 0x3E, 2, 0x01, 9]), bytes([0x04, 0x0E, 2, 7, 8])
    channel = bytes([0x02, 1, 0, 2, 0, 5, 6])
    async with echo.call() as (reader, writer):
        writer.write(advert + completed)
        assert await reader.readexactly(len(advert + completed)) == advert + completed
        echo.junction.troubles[ME] = Trouble(deaf=True)
        for byte in connected + advert + channel + advert + completed:  # however they are cut to pieces
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        heard = connected + channel + completed
        assert await reader.readexactly(len(heard)) == heard
        assert echo.junction.troubles[ME].met == 2, "two adverts were dropped"


async def test_a_server_that_is_not_there_breaks_the_call(echo: Echo) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        echo.junction.targets = (nobody.getsockname()[1],)
        async with echo.call() as (reader, _):
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await reader.readexactly(1)


async def test_a_caller_of_another_process_is_nobody(echo: Echo) -> None:
    async with echo.call() as (_, writer):
        port = writer.get_extra_info("sockname")[1]
        assert caller(port, echo.junction.port, {os.getpid(): ME}) == os.getpid()
        assert caller(port, echo.junction.port, {1 << 22: ME}) is None
        assert caller(port, 1, {os.getpid(): ME}) is None


async def test_calls_go_to_each_server_in_turn_and_past_one_that_is_not_there(echo: Echo) -> None:
    called = []
    async with AsyncExitStack() as stack:
        for name in "ab":

            def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str = name) -> None:
                called.append(name)
                writer.write(b"!")
                writer.close()

            server = await stack.enter_async_context(await asyncio.start_server(serve, "127.0.0.1", 0))
            echo.junction.targets += (server.sockets[0].getsockname()[1],)
        nobody = stack.enter_context(socket.socket())
        nobody.bind(("127.0.0.1", 0))
        echo.junction.targets = (*echo.junction.targets[1:], nobody.getsockname()[1])
        for _ in range(6):
            async with echo.call() as (reader, _writer):
                assert await reader.read() == b"!"
    assert sorted(set(called)) == ["a", "b"]


def test_a_process_and_what_it_has_started_are_a_family() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "import subprocess; subprocess.Popen(['cat']); print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as first:
        assert first.stdin is not None
        assert first.stdout is not None
        first.stdout.readline()
        found = family(first.pid)
        assert next(iter(found)) == first.pid
        assert len(found) == 2
        assert set(found.values()) == {first.pid}
        assert set(found) < set(family(os.getpid()))
        first.stdin.close()


async def test_a_socket_counts_once_and_not_where_its_far_end_is_left_out(echo: Echo) -> None:
    async with echo.call() as (_, writer):
        port, me = echo.junction.port, os.getpid()
        before = sockets(me)
        again = os.dup(writer.get_extra_info("socket").fileno())
        assert sockets(me) == before
        assert sockets(me, but_to={port}) == before - 1
        os.close(again)

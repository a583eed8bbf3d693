"""The ear of a chaotic run hears who advertises, who does not any more, and who sends what another one sends."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from companion_push.companion.advertiser.bumble import BumbleAdvertiser
from companion_push.emulation.controllers import Air as Ether
from companion_push.emulation.controllers import Host
from tests.chaos.air import Air

DATA = bytes(range(20))


@asynccontextmanager
async def radio(port: int = 0) -> AsyncIterator[int]:
    """The emulated radio link; yields its port."""
    ether = Ether(8)
    server = await asyncio.get_running_loop().create_server(lambda: Host(ether), "127.0.0.1", port)
    async with server:
        yield server.sockets[0].getsockname()[1]
        server.close()
        ether.close()


@pytest.fixture
async def transport() -> AsyncIterator[str]:
    async with radio() as port:
        yield f"tcp-client:127.0.0.1:{port}"


async def test_an_advert_is_heard_while_it_is_sent_and_not_any_more_when_it_has_ended(transport: str) -> None:
    async with Air.listen(transport) as air:
        assert await air.others() == set()
        async with BumbleAdvertiser(transport).advertise(DATA):
            assert await air.others() == {DATA}
        assert await air.others() == set()
        assert len(air.senders[DATA]) == 1
        assert {*air.senders} == {DATA}, "the probe is nobody's advert"
        assert air.doubled == []


async def test_the_same_advert_of_two_hosts_is_noticed(transport: str) -> None:
    async with Air.listen(transport) as air, AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(BumbleAdvertiser(transport).advertise(DATA))
        while air.doubled != [DATA]:
            await air.others()


async def test_the_ear_comes_back_to_a_radio_that_was_gone() -> None:
    async with AsyncExitStack() as stack:
        async with radio() as port:
            transport = f"tcp-client:127.0.0.1:{port}"
            air = await stack.enter_async_context(Air.listen(transport))
            assert await air.others() == set()
        async with radio(port), BumbleAdvertiser(transport).advertise(DATA):
            assert await air.others() == {DATA}

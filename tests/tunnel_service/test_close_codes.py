"""What each end says when a tunnel ends: who ended it, and why."""

import contextlib
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import WSMsgType

from headless_passkey.hybrid.tunnel_url import CloseReason, connect_url, new_url
from headless_passkey.net import tunnel as tunnel_module
from headless_passkey.net.tunnel import Tunnel, TunnelClosed, open_tunnel
from tests.loop_clock import LoopClock
from tests.tunnel_service import test_app

start = test_app.start
S = "the tunnel service localhost"
NOT_TAKEN = f"{S} closed the tunnel: it does not take what this end sends (close code %d)"
BREAKS = f"{S} closed the tunnel: the other end sent what it does not take"
LEFT = "the other end closed the tunnel"

Act = Callable[[Tunnel], Awaitable[object]]


def closes(code: int) -> Act:
    return lambda end: end._websocket.close(code=code)


async def vanishes(end: Tunnel) -> None:
    connection = end._websocket._response.connection
    assert connection is not None
    assert connection.transport is not None
    connection.transport.abort()


async def talks(end: Tunnel) -> None:
    await end._websocket.send_str("hello")


async def says_too_much(end: Tunnel) -> None:
    await end.send(bytes((1 << 16) + 1))


async def says_it_too_often(end: Tunnel) -> None:
    for _ in range(257):
        await end.send(b"")


async def breaks_the_protocol(end: Tunnel) -> None:
    await end._websocket._writer.send_frame(b"", WSMsgType.CONTINUATION)


@pytest.mark.parametrize("actor", [0, 1], ids=["first", "second"])
@pytest.mark.parametrize(
    ("act", "told", "other"),
    [
        (closes(1000), None, LEFT),
        (closes(1001), None, LEFT),  # as browsers do
        (closes(1011), None, f"{S} has lost the other end"),
        (vanishes, None, f"{S} has lost the other end"),
        (talks, NOT_TAKEN % 1003, BREAKS),
        (says_too_much, NOT_TAKEN % 1009, BREAKS),
        (says_it_too_often, NOT_TAKEN % 1008, BREAKS),
        (breaks_the_protocol, NOT_TAKEN % 1002, BREAKS),
    ],
)
async def test_what_an_end_does_is_not_taken_for_the_other_ones_goodbye(
    start: test_app.Start, actor: int, act: Act, told: str | None, other: str
) -> None:
    async with start() as service, service.both() as ends:
        await act(ends[actor])
        assert str(await last(ends[1 - actor])) == other
        if told is not None:
            assert str(await test_app.ended(ends[actor])) == told


async def last(end: Tunnel) -> TunnelClosed:
    """How it ended, behind all messages."""
    try:
        while True:
            await end.receive()
    except TunnelClosed as closed:
        return closed


async def test_a_service_that_stops_says_so_to_both_ends(start: test_app.Start) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with start() as service:
            ends = await stack.enter_async_context(service.both())
        for end in ends:
            assert str(await test_app.ended(end)) == f"{S} is being shut down, and closed the tunnel"


async def test_a_tunnel_whose_time_is_up_says_so_to_both_ends(
    start: test_app.Start, loop_clock: LoopClock
) -> None:
    async with (
        start(silence=1e6) as service,
        open_tunnel(new_url(service.base, test_app.TUNNEL_ID), tls=service.tls, silence=1e6) as first,
    ):
        assert first.routing_id is not None
        url = connect_url(service.base, first.routing_id, test_app.TUNNEL_ID)
        async with open_tunnel(url, tls=service.tls, silence=1e6) as second:
            loop_clock.passes(3600)
            for end in (first, second):
                assert str(await test_app.ended(end)) == f"{S} closed the tunnel: its time was up"


async def test_a_tunnel_whose_place_others_needed_says_so(start: test_app.Start) -> None:
    async with (
        start(tunnels=1) as service,
        service.open() as waiting,
        open_tunnel(new_url(service.base, bytes(16)), tls=service.tls),
    ):
        said = f"{S} closed the tunnel: others needed its place (close code 1013)"
        assert str(await test_app.ended(waiting)) == said


def test_there_are_words_for_each_reason() -> None:
    assert set(tunnel_module._AWAY) == set(CloseReason)

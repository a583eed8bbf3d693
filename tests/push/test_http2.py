"""The HTTP/2 connection by itself, with `h2`'s server at its other end and no network between."""

import asyncio

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest

from companion_push.push.http2 import Answer, Broken, Headers, Http2Connection, Unprocessed

HEADERS: Headers = [(":method", "POST"), (":scheme", "https"), (":authority", "a"), (":path", "/")]


class Wire(asyncio.Transport):
    """Keeps what is written. unread: how much of it the other end has not taken."""

    def __init__(self) -> None:
        super().__init__()
        self.written, self.closing, self.unread = b"", False, 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = True

    def get_write_buffer_size(self) -> int:
        return self.unread


class Ends:
    """A connection, and the server that it talks to."""

    def __init__(self, *, streams: int) -> None:
        self.client, self.wire = Http2Connection(), Wire()
        self.server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self.server.local_settings[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS] = streams
        self.server.local_settings.acknowledge()
        self.server.initiate_connection()
        self.client.connection_made(self.wire)
        self.requests: list[int] = []
        self.exchange()

    def exchange(self) -> None:
        """Carry what either end has to say to the other."""
        said, self.wire.written = self.wire.written, b""
        for event in self.server.receive_data(said):
            if isinstance(event, h2.events.RequestReceived):
                self.requests.append(event.stream_id)
        self.client.data_received(self.server.data_to_send())

    def answer(self, stream: int) -> None:
        self.server.send_headers(stream, [(":status", "200")], end_stream=True)
        self.client.data_received(self.server.data_to_send())

    def ask(self) -> "asyncio.Task[Answer]":
        return asyncio.create_task(self.client.request(HEADERS, b"{}", limit=10))


async def turn() -> None:
    """Let everything run that can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_place_that_a_cancelled_caller_was_given_goes_to_the_next() -> None:
    ends = Ends(streams=1)
    first, second, third = ends.ask(), ends.ask(), ends.ask()
    await turn()
    ends.exchange()
    assert ends.requests == [1]
    ends.answer(1)  # the second is woken
    second.cancel()  # and does not come to it
    await turn()
    ends.exchange()
    assert ends.requests == [1, 3]
    ends.answer(3)
    assert [(await each).status for each in (first, third)] == [200, 200]
    with pytest.raises(asyncio.CancelledError):
        await second
    ends.client.connection_lost(None)


async def test_a_limit_that_the_server_lowers_holds_for_what_comes_later() -> None:
    ends = Ends(streams=3)
    asked = [ends.ask() for _ in range(3)]
    await turn()
    ends.exchange()
    ends.server.update_settings({h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 1})
    ends.exchange()
    asked.append(ends.ask())
    for number, stream in enumerate((1, 3, 5), 1):
        await turn()
        ends.exchange()
        assert len(ends.requests) == 3, number
        ends.answer(stream)
    await turn()
    ends.exchange()
    assert ends.requests == [1, 3, 5, 7]
    ends.answer(7)
    assert [(await each).status for each in asked] == [200] * 4
    ends.client.connection_lost(None)


async def test_whoever_waits_for_a_place_is_unprocessed_when_the_connection_ends() -> None:
    ends = Ends(streams=1)
    first, second = ends.ask(), ends.ask()
    await turn()
    ends.client.connection_lost(None)
    with pytest.raises(Broken):
        await first
    with pytest.raises(Unprocessed):
        await second
    with pytest.raises(Unprocessed):
        await ends.ask()
    with pytest.raises(Broken):
        await ends.client.ping()


async def test_a_server_that_reads_nothing_is_cut_off() -> None:
    ends = Ends(streams=10)
    ends.wire.unread = (1 << 20) + 1
    asking = ends.ask()
    await turn()
    assert ends.wire.closing
    ends.client.connection_lost(None)
    with pytest.raises(Broken):
        await asking


async def test_an_informational_answer_is_not_the_answer() -> None:
    ends = Ends(streams=1)
    asking = ends.ask()
    await turn()
    ends.exchange()
    ends.server.send_headers(1, [(":status", "103")])
    ends.server.send_headers(1, [(":status", "200"), ("apns-id", "x")])
    ends.server.send_data(1, b"abc", end_stream=True)
    ends.exchange()
    assert await asking == Answer(status=200, headers={"apns-id": "x"}, body=b"abc")
    ends.client.connection_lost(None)

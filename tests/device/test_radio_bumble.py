"""The bumble radio against emulated controllers in this process."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from bumble.device import AdvertisingType

from companion_push.emulation.controllers import Air, Host
from headless_passkey.errors import TransportError, UsageError
from headless_passkey.radio.bumble import STOP_TIMEOUT, BumbleRadio, open_device
from tests.loop_clock import LoopClock
from tests.ports import reserved_port

FFF9, FDE2 = b"\xf9\xff", b"\xe2\xfd"


@pytest.fixture
async def air() -> AsyncIterator[tuple[Air, str]]:
    """The air, and the name of the transport that leads to a controller on it."""
    air = Air(8)
    server = await asyncio.get_running_loop().create_server(lambda: Host(air), "127.0.0.1", 0)
    async with server:
        yield air, f"tcp-client:127.0.0.1:{server.sockets[0].getsockname()[1]}"
        air.close()


def service_data(uuid: bytes, data: bytes) -> bytes:
    return bytes([3 + len(data), 0x16]) + uuid + data


@pytest.mark.parametrize(
    ("data", "heard"),
    [
        (service_data(FFF9, b"a" * 20), [b"a" * 20]),
        (service_data(FDE2, b"b" * 20), [b"b" * 20]),
        (b"\x02\x01\x06" + service_data(FFF9, b"c" * 24), [b"c" * 24]),
        (b"\x03\x03\xf9\xff" + service_data(FFF9, b"d" * 20), [b"d" * 20]),
        (service_data(FFF9, b"e") + service_data(FDE2, b"f"), [b"e", b"f"]),
        (service_data(FFF9, b""), [b""]),
    ],
)
async def test_service_data_under_either_uuid_is_heard(
    air: tuple[Air, str], data: bytes, heard: list[bytes]
) -> None:
    async with BumbleRadio(air[1]).adverts() as adverts, open_device(air[1]) as (phone, _):
        await phone.start_advertising(advertising_type=AdvertisingType.UNDIRECTED, advertising_data=data)
        async with asyncio.timeout(60):
            found = [await anext(adverts) for _ in heard]
        assert [advert.service_data for advert in found] == heard
        assert {advert.address for advert in found} == {
            phone.random_address.to_string(with_type_qualifier=False)
        }
        assert {advert.rssi for advert in found} == {-50}


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0",
        b"\xff",
        b"\x17\x16\xf9",
        b"\x1f\x16\xf9\xff" + bytes(3),
        b"\x01\x16",
        b"\x02\x16\xf9",
        service_data(b"\xf3\xfe", bytes(20)),
        b"\x15\x21" + bytes(20),
        b"\xff" * 31,
    ],
)
async def test_malformed_and_foreign_adverts_do_no_harm(air: tuple[Air, str], data: bytes) -> None:
    good = b"x" * 20
    async with BumbleRadio(air[1]).adverts() as adverts, open_device(air[1]) as (stranger, _):
        await stranger.start_advertising(
            advertising_type=AdvertisingType.UNDIRECTED,
            advertising_data=data,
            advertising_interval_min=20,
        )
        async with open_device(air[1]) as (phone, _):
            await phone.start_advertising(
                advertising_type=AdvertisingType.UNDIRECTED, advertising_data=service_data(FFF9, good)
            )
            async with asyncio.timeout(60):
                async for advert in adverts:
                    if advert.service_data == good:
                        break
                    assert len(advert.service_data) < 20


@pytest.mark.parametrize("passive", [False, True])
async def test_a_passive_scan_hears_the_same_and_asks_nobody(air: tuple[Air, str], *, passive: bool) -> None:
    async with BumbleRadio(air[1], passive=passive).adverts() as adverts, open_device(air[1]) as (phone, _):
        await phone.start_advertising(
            advertising_type=AdvertisingType.UNDIRECTED_CONNECTABLE_SCANNABLE,
            advertising_data=service_data(FFF9, b"a" * 20),
            scan_response_data=service_data(FFF9, b"b" * 20),
        )
        heard = set()
        async with asyncio.timeout(60):
            for _ in range(6):
                heard.add((await anext(adverts)).service_data)
    assert heard == ({b"a" * 20} if passive else {b"a" * 20, b"b" * 20})


async def test_when_the_controller_goes_listening_fails(air: tuple[Air, str]) -> None:
    async with BumbleRadio(air[1]).adverts() as adverts:
        hearing = asyncio.ensure_future(anext(adverts))
        air[0].close()
        async with asyncio.timeout(60):
            with pytest.raises(TransportError, match="has gone"):
                await hearing


async def test_leaving_gives_the_controller_back(air: tuple[Air, str]) -> None:
    for _ in range(20):
        async with BumbleRadio(air[1]).adverts():
            pass


async def test_a_controller_that_is_not_there_is_a_transport_error() -> None:
    nobody = f"tcp-client:127.0.0.1:{reserved_port()}"
    with pytest.raises(TransportError, match=re.escape(nobody)):
        async with BumbleRadio(nobody).adverts():
            pass


async def test_a_controller_that_does_not_answer_is_a_transport_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("headless_passkey.radio.bumble.START_TIMEOUT", 0.1)
    held: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _reader, writer: held.append(writer), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(TransportError, match="does not answer"):
            async with BumbleRadio(f"tcp-client:127.0.0.1:{port}").adverts():
                pass
        for writer in held:
            writer.close()


@pytest.mark.parametrize("transport", ["", "carrier-pigeon:1", "tcp-client", "tcp-client:nowhere", "file"])
async def test_a_name_that_names_no_transport_is_a_usage_error(transport: str) -> None:
    with pytest.raises(UsageError):
        async with BumbleRadio(transport).adverts():
            pass


RESET, STOP_SCANNING = b"\x03\x0c", b"\x42\x20"  # opcodes, in answers


class Slow:
    """What stands before a controller, and holds its answers back."""

    def __init__(self) -> None:
        self.holds = False
        self.held = bytearray()
        self._news = asyncio.Event()
        self._host: asyncio.StreamWriter | None = None
        self._jobs: set[asyncio.Task[None]] = set()

    @classmethod
    @asynccontextmanager
    async def before(cls, transport: str) -> AsyncIterator[tuple["Slow", str]]:
        slow = cls()

        async def carry(near: asyncio.StreamReader, to_near: asyncio.StreamWriter) -> None:
            far, to_far = await asyncio.open_connection("127.0.0.1", int(transport.rpartition(":")[2]))
            slow._host = to_near
            answering = asyncio.create_task(slow._answer(far))
            while data := await near.read(1 << 16):
                to_far.write(data)
            to_far.write_eof()
            await answering  # which ends when the controller is unplugged
            to_far.transport.abort()
            to_near.transport.abort()

        def connected(near: asyncio.StreamReader, to_near: asyncio.StreamWriter) -> None:
            slow._jobs.add(asyncio.create_task(carry(near, to_near)))

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        async with server:
            yield slow, f"tcp-client:127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await asyncio.wait(slow._jobs)

    async def _answer(self, far: asyncio.StreamReader) -> None:
        while data := await far.read(1 << 16):
            self.held += data
            self._news.set()
            if not self.holds:
                self.go_on()

    def go_on(self) -> None:
        """All that was held back, at once."""
        assert self._host is not None
        self._host.write(bytes(self.held))
        self.held.clear()

    async def until(self, opcode: bytes) -> None:
        """Until the controller has answered a command."""
        while opcode not in self.held:
            self._news.clear()
            await self._news.wait()


@pytest.mark.parametrize("comes_to_itself", [True, False])
async def test_a_controller_that_answers_late_while_it_is_closed_disturbs_nobody(
    air: tuple[Air, str], loop_clock: LoopClock, caplog: pytest.LogCaptureFixture, *, comes_to_itself: bool
) -> None:
    async with Slow.before(air[1]) as (slow, transport):

        async def scan() -> None:
            async with BumbleRadio(transport).adverts():
                slow.holds = True

        scanning = asyncio.create_task(scan())
        await slow.until(STOP_SCANNING)
        loop_clock.passes(STOP_TIMEOUT)
        await slow.until(RESET)  # it is told to stop, all the same
        if comes_to_itself:
            slow.go_on()
        else:
            loop_clock.passes(STOP_TIMEOUT)
        await scanning
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []

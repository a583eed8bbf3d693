"""bumble's ways to a controller, for the phone that advertises and the device that listens alike."""

import asyncio
import errno
import os
import pty
import secrets
import socket
import time
import tty
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import usb1  # type: ignore[import-untyped]
from bumble.transport.common import TransportInitError
from certificates import Certificate
from usb.core import NoBackendError  # type: ignore[import-untyped]

from companion_push.companion.advertiser.bumble import BumbleAdvertiser
from companion_push.emulation.controllers import Air, Host
from headless_passkey.errors import SetupError, TransportError, TransportReason
from headless_passkey.radio.bumble import BumbleRadio
from tests.companion.device import transaction, tunnel_service
from tests.companion.program import Program, running

SENT = bytes(range(20))


class Line(asyncio.Transport):
    """A serial line as an emulated controller has it: what its host sends is read here."""

    def __init__(self, air: Air, descriptor: int) -> None:
        super().__init__()
        self._loop, self._descriptor, self._open = asyncio.get_running_loop(), descriptor, True
        self._host = Host(air)
        self.at_once = 0  # the most commands that came before the first of them was answered
        self._loop.add_reader(descriptor, self._read)
        self._host.connection_made(self)

    def _read(self) -> None:
        try:
            data = os.read(self._descriptor, 4096)
        except OSError:  # the other end was closed
            data = b""
        if data:
            self.at_once = max(self.at_once, len(list(_commands(data))))
            self._host.data_received(data)
        else:
            self.abort()

    def write(self, data: Any) -> None:
        os.write(self._descriptor, data)

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return not self._open

    def abort(self) -> None:
        if self._open:
            self._open = False
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._host.connection_lost(None)


def _commands(data: bytes) -> Iterator[bytes]:
    """HCI commands (H4: 0x01, two bytes of opcode, length, parameters)."""
    while data:
        assert data[0] == 1
        yield data[: 4 + data[3]]
        data = data[4 + data[3] :]


@pytest.fixture
def air() -> Iterator[Air]:
    air = Air(8)
    yield air
    air.close()


Way = Callable[[Air, Path], AbstractAsyncContextManager[tuple[str, Callable[[], None]]]]


@asynccontextmanager
async def serial(air: Air, folder: Path) -> AsyncIterator[tuple[str, Callable[[], None]]]:
    """A controller at a serial port: the name of bumble's transport to it, and what pulls it out.

    It insists on what HCI does: a command is answered before the next one comes.
    """
    outer, inner = pty.openpty()
    tty.setraw(outer)
    line = Line(air, outer)
    try:
        yield f"serial:{os.ttyname(inner)},115200,rtscts", line.abort
        assert line.at_once <= 1
    finally:
        line.abort()
        os.close(inner)


@asynccontextmanager
async def unix_socket(air: Air, folder: Path) -> AsyncIterator[tuple[str, Callable[[], None]]]:
    path = folder / f"{secrets.token_hex(4)}.socket"
    async with await asyncio.get_running_loop().create_unix_server(lambda: Host(air), path):
        yield f"unix:{path}", air.close


@asynccontextmanager
async def tcp(air: Air, folder: Path) -> AsyncIterator[tuple[str, Callable[[], None]]]:
    server = await asyncio.get_running_loop().create_server(lambda: Host(air), "127.0.0.1", 0)
    async with server:
        yield f"tcp-client:127.0.0.1:{server.sockets[0].getsockname()[1]}", air.close


WAYS = [serial, unix_socket, tcp]


@pytest.mark.parametrize("way", WAYS)
async def test_adverts_are_sent_and_heard(air: Air, tmp_path: Path, way: Way) -> None:
    async with (
        way(air, tmp_path) as (one, _),
        way(air, tmp_path) as (other, _),
        BumbleRadio(one).adverts() as adverts,
        BumbleAdvertiser(other).advertise(SENT),
        asyncio.timeout(60),
    ):
        assert (await anext(adverts)).service_data == SENT


@pytest.mark.parametrize("way", WAYS)
async def test_a_controller_that_is_pulled_out_is_missed_at_once(air: Air, tmp_path: Path, way: Way) -> None:
    async def phone() -> None:
        async with (
            way(air, tmp_path) as (transport, pull_out),
            BumbleAdvertiser(transport).advertise(SENT),
        ):
            pull_out()
            await asyncio.Event().wait()

    async with asyncio.timeout(60):
        with pytest.raises(TransportError) as failed:
            await phone()
    assert failed.value.reason is TransportReason.NO_ADAPTER


async def test_a_controller_may_come_to_us_through_a_terminal(air: Air, tmp_path: Path) -> None:
    link = tmp_path / "controller"

    async def come() -> Line:
        while not link.exists():  # noqa: ASYNC110  nobody tells of it
            await asyncio.sleep(0)
        return Line(air, os.open(link, os.O_RDWR | os.O_NOCTTY))

    coming = asyncio.create_task(come())
    async with (
        tcp(air, tmp_path) as (listener, _),
        BumbleAdvertiser(f"pty:{link}").advertise(SENT),
        BumbleRadio(listener).adverts() as adverts,
        asyncio.timeout(60),
    ):
        assert (await anext(adverts)).service_data == SENT
    (await coming).abort()


def on_the_air(air: Air) -> int:
    """How many adverts are being sent now."""
    return sum(
        advertising_set.enabled
        for controller in air.link.controllers
        for advertising_set in controller.advertising_sets.values()
    )


@asynccontextmanager
async def phone_program(
    transport: str, air: Air, folder: Path, certificate: Certificate
) -> AsyncIterator[Program]:
    """`companion-push phone`, advertising."""
    url = transaction(time=int(time.time())).url.encode()
    async with (
        tunnel_service(certificate) as base,
        running(
            *("phone", "--url", "-", "--radio", f"bumble:{transport}", "--tunnel", f"300={base}"),
            *("--uv", "accept", "--credentials", folder / "passkeys.json", "--ca", certificate.ca),
            stdin=f"{url}\n",
        ) as program,
        asyncio.timeout(60),
    ):
        while not on_the_air(air):  # noqa: ASYNC110  the controller tells nobody
            await asyncio.sleep(0)
        yield program


async def test_a_phone_that_is_told_to_end_silences_a_controller_that_stays(
    air: Air, tmp_path: Path, loopback_certificate: Certificate
) -> None:
    async with (
        serial(air, tmp_path) as (transport, _),
        phone_program(transport, air, tmp_path, loopback_certificate) as program,
    ):
        program.terminate()
        await program.ended()
        assert on_the_air(air) == 0


@pytest.mark.parametrize("program", [BumbleAdvertiser, BumbleRadio])
async def test_cancelling_at_any_point_leaves_a_silent_controller(
    air: Air, tmp_path: Path, program: type[BumbleAdvertiser | BumbleRadio]
) -> None:
    async def use(transport: str) -> None:
        one = program(transport)
        async with one.adverts() if isinstance(one, BumbleRadio) else one.advertise(SENT):
            await asyncio.Event().wait()

    async with serial(air, tmp_path) as (transport, _):
        for turns in range(0, 400, 3):
            task = asyncio.create_task(use(transport))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            assert on_the_air(air) == 0
            assert not any(controller.le_scan_enable for controller in air.link.controllers)


async def test_what_a_phone_that_was_killed_left_in_a_controller_the_next_one_clears(
    air: Air, tmp_path: Path, loopback_certificate: Certificate
) -> None:
    async with serial(air, tmp_path) as (transport, _):
        async with phone_program(transport, air, tmp_path, loopback_certificate) as program:
            program.process.kill()
            await program.ended()
            assert on_the_air(air) == 1  # nobody told it
        async with BumbleAdvertiser(transport).advertise(SENT):
            assert on_the_air(air) == 1
        assert on_the_air(air) == 0


async def failure(transport: str) -> TransportError:
    with pytest.raises(TransportError) as failed:
        async with BumbleAdvertiser(transport).advertise(SENT):
            pass

    async def listen() -> None:
        async with BumbleRadio(transport).adverts():
            pass

    with pytest.raises(TransportError) as failed_too:
        await listen()
    assert (failed.value.reason, str(failed.value)) == (failed_too.value.reason, str(failed_too.value))
    assert transport in str(failed.value)
    return failed.value


@pytest.mark.parametrize("transport", ["serial:/dev/nowhere", "file:/dev/nowhere", "unix:/nowhere/socket"])
async def test_a_device_that_is_not_there_is_no_adapter(transport: str) -> None:
    error = await failure(transport)
    assert error.reason is TransportReason.NO_ADAPTER
    assert "No such file" in str(error)


@pytest.mark.parametrize(
    ("transport", "error", "reason", "word"),
    [
        ("hci-socket:0", OSError(errno.EPERM, "no"), TransportReason.BLUETOOTH_FORBIDDEN, "CAP_NET_ADMIN"),
        ("hci-socket:0", OSError(errno.EBUSY, "no"), TransportReason.ADAPTER_BUSY, "stop bluetooth"),
        ("hci-socket:0", OSError(errno.ERFKILL, "no"), TransportReason.ADAPTER_BLOCKED, "unblock"),
        (
            "hci-socket:7",
            OSError(errno.ENODEV, "No such device"),
            TransportReason.NO_ADAPTER,
            "No such device",
        ),
        ("serial:/dev/x", OSError(errno.EACCES, "no"), TransportReason.BLUETOOTH_FORBIDDEN, "dialout"),
        ("usb:0", usb1.USBErrorAccess(), TransportReason.BLUETOOTH_FORBIDDEN, "udev"),
        ("usb:0", usb1.USBErrorBusy(), TransportReason.ADAPTER_BUSY, "end what has it"),
        ("usb:0", TransportInitError("device not found"), TransportReason.NO_ADAPTER, "device not found"),
        ("pyusb:0", NoBackendError("no backend"), TransportReason.NO_ADAPTER, "no backend"),
    ],
)
async def test_what_hinders_is_said_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, transport: str, error: Exception, reason: TransportReason, word: str
) -> None:
    async def refuse(_: str) -> None:
        raise error

    monkeypatch.setattr("headless_passkey.radio.bumble.open_transport", refuse)
    failed = await failure(transport)
    assert failed.reason is reason
    assert word in failed.explain()


async def test_a_python_without_bluetooth_sockets_is_a_setup_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_BLUETOOTH", raising=False)
    with pytest.raises(SetupError, match="sockets"):
        async with BumbleAdvertiser("hci-socket:0").advertise(SENT):
            pass


async def test_a_package_that_is_missing_is_a_setup_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(_: str) -> None:
        raise ModuleNotFoundError("No module named 'grpc'", name="grpc")

    monkeypatch.setattr("headless_passkey.radio.bumble.open_transport", refuse)
    with pytest.raises(SetupError, match="grpc"):
        async with BumbleAdvertiser("android-netsim").advertise(SENT):
            pass

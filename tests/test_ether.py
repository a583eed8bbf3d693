"""The ether with hosts in processes of their own: who hears whom, as what, and for how long."""

import asyncio
import contextlib
import signal
import socket
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from bumble.device import Advertisement, AdvertisingType
from bumble.hci import (
    HCI_Command_Complete_Event,
    HCI_Error,
    HCI_LE_Set_Advertising_Data_Command,
    HCI_LE_Set_Advertising_Enable_Command,
    HCI_LE_Set_Advertising_Parameters_Command,
    HCI_LE_Set_Extended_Advertising_Enable_Command,
    HCI_Reset_Command,
    OwnAddressType,
)

from companion_push.companion.advertiser.bumble import BumbleAdvertiser
from headless_passkey.radio.bumble import BumbleRadio, open_device
from tests.programs import ROOT, Program, run, running

ADVERTISE = """
import asyncio, sys
from companion_push.companion.advertiser.bumble import BumbleAdvertiser

async def main():
    async with BumbleAdvertiser(sys.argv[1]).advertise(bytes.fromhex(sys.argv[2])):
        print("on the air", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
async def ether() -> AsyncIterator[str]:
    """The transport name of a running ether."""
    async with running("companion_push", "ether", "--listen", "127.0.0.1:0") as program:
        yield await program.line()
        assert await program.end() == 0
        assert "Traceback" not in await program.stderr()


@asynccontextmanager
async def advertiser(transport: str, service_data: bytes) -> AsyncIterator[Program]:
    """Another process that advertises."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        ADVERTISE,
        transport,
        service_data.hex(),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    program = Program(process)
    try:
        assert await program.line() == "on the air"
        yield program
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await program.stderr()


@asynccontextmanager
async def scanner(transport: str, *, active: bool = True) -> AsyncIterator[asyncio.Queue[Advertisement]]:
    """Every report that a host gets, one by one as the controller sends them."""
    heard: asyncio.Queue[Advertisement] = asyncio.Queue()

    def report(raw: object) -> None:
        advertisement = Advertisement.from_advertising_report(raw)
        assert advertisement is not None
        heard.put_nowait(advertisement)

    async with open_device(transport) as (device, _lost):
        device.host.on("advertising_report", report)
        await device.start_scanning(active=active)
        yield heard


async def silence(heard: asyncio.Queue[Advertisement], seconds: float = 0.5) -> bool:
    """Whether nothing is heard for a while, several times the interval of adverts."""
    while not heard.empty():
        heard.get_nowait()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await heard.get()
            return False
    return True


async def falls_silent(heard: asyncio.Queue[Advertisement]) -> None:
    """Nothing is heard any more, once what was on its way has come."""
    async with asyncio.timeout(60):
        while not await silence(heard):
            pass


async def test_a_device_hears_a_phone_in_another_process(ether: str) -> None:
    sent = bytes(range(20))
    async with BumbleRadio(ether).adverts() as adverts, advertiser(ether, sent):
        async with asyncio.timeout(60):
            advert = await anext(adverts)
    assert advert.service_data == sent
    assert advert.rssi == -50


async def test_a_phone_that_was_there_first_is_heard_too(ether: str) -> None:
    sent = bytes(range(20))
    async with advertiser(ether, sent), BumbleRadio(ether).adverts() as adverts:
        async with asyncio.timeout(60):
            assert (await anext(adverts)).service_data == sent
            assert (await anext(adverts)).service_data == sent


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_the_adverts_of_a_phone_that_was_killed_stop(ether: str, number: signal.Signals) -> None:
    async with scanner(ether) as heard, advertiser(ether, bytes(20)) as phone:
        async with asyncio.timeout(60):
            await heard.get()
        phone.process.send_signal(number)
        if number is signal.SIGKILL:
            await phone.process.wait()
            await falls_silent(heard)
        else:  # a phone that only stands still keeps its controller
            while not heard.empty():
                heard.get_nowait()
            async with asyncio.timeout(60):
                for _ in range(3):
                    await heard.get()


async def test_many_hosts_hear_each_other_and_not_themselves(ether: str) -> None:
    sent = {bytes([number]) * 20 for number in (1, 2)}
    async with contextlib.AsyncExitStack() as stack:
        scanners = [await stack.enter_async_context(scanner(ether)) for _ in range(2)]
        for service_data in sent:
            await stack.enter_async_context(BumbleAdvertiser(ether).advertise(service_data))
        for heard in scanners:
            found: set[bytes] = set()
            async with asyncio.timeout(60):
                while len(found) < 2:
                    found.add((await heard.get()).data_bytes[-20:])
            assert found == sent


async def test_every_host_has_a_public_address_of_its_own(ether: str) -> None:
    async with open_device(ether) as (first, _), open_device(ether) as (second, _):
        assert first.public_address != second.public_address
        assert first.public_address.is_public
        assert first.random_address != second.random_address
        assert first.random_address.is_static


@pytest.mark.parametrize(
    ("kind", "connectable", "scannable"),
    [
        (AdvertisingType.UNDIRECTED, False, False),
        (AdvertisingType.UNDIRECTED_SCANNABLE, False, True),
        (AdvertisingType.UNDIRECTED_CONNECTABLE_SCANNABLE, True, True),
    ],
)
@pytest.mark.parametrize("active", [True, False])
async def test_an_advert_is_reported_as_what_it_is(
    ether: str, kind: AdvertisingType, *, connectable: bool, scannable: bool, active: bool
) -> None:
    flags, name = b"\x02\x01\x06", b"\x03\x09hi"
    async with scanner(ether, active=active) as heard, open_device(ether) as (phone, _):
        await phone.start_advertising(
            advertising_type=kind,
            advertising_data=flags,
            scan_response_data=name,
            advertising_interval_min=50,
        )
        async with asyncio.timeout(60):
            reports = [await heard.get() for _ in range(6)]
    assert {report.is_connectable for report in reports} == {connectable}
    assert {report.is_scannable for report in reports} == {scannable}
    assert {report.is_legacy for report in reports if not report.is_scan_response} == {True}
    assert any(report.is_scan_response for report in reports) == (scannable and active)
    assert {bytes(report.data_bytes) for report in reports if not report.is_scan_response} == {flags}


async def test_extended_adverts_are_reported_as_such(ether: str) -> None:
    async with scanner(ether) as heard, BumbleAdvertiser(ether).advertise(bytes(40)):
        async with asyncio.timeout(60):
            report = await heard.get()
    assert (report.is_legacy, report.is_connectable, report.is_scannable) == (False, False, False)
    assert report.is_complete
    assert report.data_bytes == b"\x2b\x16\xf9\xff" + bytes(40)


async def test_what_does_not_fit_into_one_report_is_marked_as_cut(ether: str) -> None:
    async with scanner(ether) as heard, BumbleAdvertiser(ether).advertise(bytes(247)):
        async with asyncio.timeout(60):
            report = await heard.get()
    assert report.is_truncated
    assert len(report.data_bytes) == 229


async def test_the_legacy_commands_send_non_connectable_adverts_too(ether: str) -> None:
    async with scanner(ether) as heard, open_device(ether) as (phone, _):
        await phone.send_sync_command(
            HCI_LE_Set_Advertising_Parameters_Command(
                advertising_interval_min=100,
                advertising_interval_max=100,
                advertising_type=3,
                own_address_type=OwnAddressType.RANDOM,
                peer_address_type=0,
                peer_address=phone.random_address,
                advertising_channel_map=7,
                advertising_filter_policy=0,
            )
        )
        await phone.send_sync_command(HCI_LE_Set_Advertising_Data_Command(advertising_data=b"\x02\x01\x06"))
        await phone.send_sync_command(HCI_LE_Set_Advertising_Enable_Command(advertising_enable=1))
        async with asyncio.timeout(60):
            report = await heard.get()
        assert (report.is_legacy, report.is_connectable, report.is_scannable) == (True, False, False)
        await phone.send_sync_command(HCI_LE_Set_Advertising_Enable_Command(advertising_enable=0))
        await falls_silent(heard)


async def test_a_reset_stops_everything(ether: str) -> None:
    async with scanner(ether) as heard, open_device(ether) as (phone, _):
        await phone.start_advertising(
            advertising_type=AdvertisingType.UNDIRECTED, advertising_data=b"\x02\x01\x06"
        )
        async with asyncio.timeout(60):
            await heard.get()
        await phone.send_sync_command(HCI_Reset_Command())
        await falls_silent(heard)


async def test_a_legacy_advert_that_is_too_long_and_one_without_an_address_are_refused(ether: str) -> None:
    async with open_device(ether) as (phone, _):
        with pytest.raises(HCI_Error):
            await phone.start_advertising(
                advertising_type=AdvertisingType.UNDIRECTED, advertising_data=bytes([31, 0x16]) + bytes(30)
            )
        with pytest.raises(HCI_Error):
            await phone.send_sync_command(
                HCI_LE_Set_Extended_Advertising_Enable_Command(
                    enable=1, advertising_handles=[9], durations=[0], max_extended_advertising_events=[0]
                )
            )


async def test_a_peer_learns_when_the_host_it_is_connected_to_has_gone(ether: str) -> None:
    async with scanner(ether) as heard, open_device(ether) as (computer, _):
        gone = asyncio.Event()
        async with open_device(ether) as (phone, _):
            await phone.start_advertising(
                advertising_type=AdvertisingType.UNDIRECTED_CONNECTABLE_SCANNABLE,
                own_address_type=OwnAddressType.RANDOM,
            )
            async with asyncio.timeout(60):
                await heard.get()
                connection = await computer.connect(
                    phone.random_address, own_address_type=OwnAddressType.RANDOM
                )
            connection.on("disconnection", lambda _reason: gone.set())
        async with asyncio.timeout(60):
            await gone.wait()


async def test_when_every_controller_is_in_use_a_host_is_turned_away() -> None:
    words = ("ether", "--listen", "127.0.0.1:0", "--controllers", "1")
    async with running("companion_push", *words) as program:
        _, host, port = (await program.line()).split(":")
        async with open_device(f"tcp-client:{host}:{port}"):
            reader, writer = await asyncio.open_connection(host, int(port))
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
        async with asyncio.timeout(60):
            while True:  # the number is given back as soon as the ether has noticed
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(bytes(HCI_Reset_Command()))
                with contextlib.suppress(ConnectionError):
                    answer = await reader.read(1024)
                    writer.close()
                    if answer:
                        break
        assert answer == bytes(
            HCI_Command_Complete_Event(
                num_hci_command_packets=1,
                command_opcode=HCI_Reset_Command.op_code,
                return_parameters=HCI_Reset_Command.parse_return_parameters(b"\0"),
            )
        )


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    "noise",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x01\x03\x0c\x05abcde",
        b"\x01\x36\x20\x00",
        b"\x04\x3e\x01\x02",
        b"\xff" * 99,
    ],
)
async def test_a_host_that_sends_nonsense_does_not_disturb_the_others(ether: str, noise: bytes) -> None:
    _, host, port = ether.split(":")
    _reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(noise)
    await writer.drain()
    async with BumbleRadio(ether).adverts() as adverts, BumbleAdvertiser(ether).advertise(bytes(20)):
        async with asyncio.timeout(60):
            assert (await anext(adverts)).service_data == bytes(20)
    writer.close()


async def test_a_host_that_vanishes_without_a_word_leaves_no_ghost(ether: str) -> None:
    async with scanner(ether) as heard:
        async with open_device(ether) as (phone, _):
            await phone.start_advertising(
                advertising_type=AdvertisingType.UNDIRECTED, advertising_data=b"\x02\x01\x06"
            )
            async with asyncio.timeout(60):
                await heard.get()
            connection = phone.host.hci_sink.transport  # type: ignore[union-attr]
            sock = connection.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.abort()
        await falls_silent(heard)


async def test_only_loopback_unless_told() -> None:
    status, stdout, stderr = await run("companion_push", "ether", "--listen", "0.0.0.0:0")
    assert (status, stdout) == (2, "")
    assert "--allow-remote" in stderr
    ended, _, stderr = await run("companion_push", "ether", "--listen", "a..b:0", "--allow-remote")
    assert ended == 10
    assert "cannot listen on a..b:0: not a host's name" in stderr
    async with running("companion_push", "ether", "--listen", "0.0.0.0:0", "--allow-remote") as program:
        assert (await program.line()).startswith("tcp-client:0.0.0.0:")
        assert await program.end() == 0


async def test_a_taken_port_is_a_matter_of_set_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        status, stdout, stderr = await run("companion_push", "ether", "--listen", listen)
    assert (status, stdout, stderr.count("\n")) == (10, "", 1)


async def test_without_bumble_it_says_what_to_install() -> None:
    blocked = "import sys; sys.modules['bumble'] = None; import runpy; runpy.run_module('companion_push', run_name='__main__')"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        blocked,
        "ether",
        "--listen",
        "127.0.0.1:0",
        cwd=ROOT,
        stderr=asyncio.subprocess.PIPE,
    )
    _, stderr = await process.communicate()
    assert process.returncode == 10
    assert b"`pip install '.[emulation]'` in the clone" in stderr
    assert stderr.count(b"\n") == 1

"""The software phone advertises through real BlueZ, and nothing of it stays; the controllers say what they were told."""

import asyncio
import contextlib
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from certificates import Certificate

from companion_push.companion.advertiser.bluez import BluezAdvertiser
from companion_push.companion.advertiser.bumble import BumbleAdvertiser
from headless_passkey.errors import TransportError, TransportReason
from headless_passkey.hybrid.client_platform import QrTransaction
from headless_passkey.hybrid.fido_url import RequestKind
from headless_passkey.radio.bleak import BleakRadio
from headless_passkey.radio.bumble import BumbleRadio
from headless_passkey.radio.source import Advert
from tests.ble.lab.ceremony import Ceremony
from tests.ble.lab.guest import PATIENCE, Guest, let_in, order, running_as
from tests.programs import ROOT

SENT = bytes(range(20))
LEGACY = 0x10  # advertising event properties: a legacy advert, neither connectable nor scannable
EXTENDED = 0x00

# `python -c` with this advertises until it is ended; it says so once it does, or what hinders it
_PROGRAM = """
import asyncio
from companion_push.companion.advertiser.bluez import BluezAdvertiser
from headless_passkey.errors import TransportError

async def main():
    async with BluezAdvertiser("hci0").advertise(bytes(20)):
        print("advertising", flush=True)
        await asyncio.Event().wait()

try:
    asyncio.run(main())
except TransportError as error:
    print(error.reason)
"""


@dataclass(frozen=True, kw_only=True)
class Told:
    """An advert as the controller was told to send it."""

    interval: float  # milliseconds
    properties: int
    data: bytes

    @classmethod
    async def by(cls, adapter: str) -> list["Told"]:
        words = [word.split(":") for word in (await order(f"adverts {adapter}")).split()]
        return [
            cls(
                interval=int(interval, 16) * 0.625,
                properties=int(properties, 16),
                data=bytes.fromhex(data),
            )
            for interval, properties, data in words
        ]


async def until_told(adapter: str, number: int) -> list[Told]:
    """Wait until the adapter's controller sends so many adverts."""
    async with asyncio.timeout(PATIENCE):
        while len(told := await Told.by(adapter)) != number:
            pass  # asking takes its time
    return told


async def hears(adverts: AsyncIterator[Advert], *wanted: bytes) -> None:
    """Wait until every one of them has been heard."""
    missing = set(wanted)
    async with asyncio.timeout(PATIENCE):
        while missing:
            missing.discard((await anext(adverts)).service_data)


@pytest.mark.short
@pytest.mark.parametrize(
    ("size", "properties", "listed"),
    [
        (20, LEGACY, True),
        (24, LEGACY, False),  # 31 bytes with the adapter's flags
        (25, EXTENDED, False),
    ],
)
async def test_an_advert_is_heard_from_one_adapter_to_the_other(
    guest: Guest, size: int, properties: int, *, listed: bool
) -> None:
    sent = bytes(range(size))
    async with BleakRadio(adapter="hci1").adverts() as adverts, BluezAdvertiser("hci0").advertise(sent):
        await hears(adverts, sent)
        (told,) = await Told.by("hci0")
    assert told.properties == properties
    assert told.data.endswith(bytes([size + 3]) + b"\x16\xf9\xff" + sent)
    assert (b"\x03\x03\xf9\xff" in told.data) == listed
    await until_told("hci0", 0)


async def test_more_than_bluetoothd_takes_is_beyond_the_adapter(guest: Guest) -> None:
    with pytest.raises(TransportError) as failed:
        async with BluezAdvertiser("hci0").advertise(bytes(100)):
            pass
    assert failed.value.reason is TransportReason.ADAPTER_UNABLE


async def test_the_interval_is_ours_with_experimental_interfaces_and_else_that_of_the_kernel(
    guest: Guest,
) -> None:
    async with BluezAdvertiser("hci0").advertise(SENT):
        (told,) = await Told.by("hci0")
        assert told.interval == (100 if guest.experimental else 1280)
    async with guest.experiments(), BluezAdvertiser("hci0").advertise(SENT):
        (told,) = await Told.by("hci0")
        assert told.interval == 100


async def test_two_phones_are_heard_over_one_adapter(guest: Guest) -> None:
    first, second = b"1" * 20, b"2" * 20
    async with (
        BleakRadio(adapter="hci1").adverts() as adverts,
        BluezAdvertiser("hci0").advertise(first),
        BluezAdvertiser("hci0").advertise(second),
    ):
        await hears(adverts, first, second)
        assert len(await Told.by("hci0")) == 2
    assert await guest.advertising("hci0") == 0


async def test_a_user_signs_in_from_one_adapter_to_the_other(
    guest: Guest, ceremony: Callable[..., Ceremony], registered: bytes
) -> None:
    made = ceremony()
    signed_in, _ = await asyncio.gather(
        made.sign_in(BleakRadio(adapter="hci1")), made.phone(BluezAdvertiser("hci0"))
    )
    assert signed_in.credential.credential_id == registered
    await until_told("hci0", 0)


# How it ends


async def test_leaving_takes_the_advert_down(guest: Guest) -> None:
    async with BluezAdvertiser("hci0").advertise(SENT):
        assert await guest.advertising("hci0") == 1
    assert await guest.advertising("hci0") == 0
    await until_told("hci0", 0)


async def test_an_error_inside_takes_the_advert_down(guest: Guest) -> None:
    with pytest.raises(KeyError):
        async with BluezAdvertiser("hci0").advertise(SENT):
            raise KeyError
    assert await guest.advertising("hci0") == 0


async def test_cancelling_at_any_point_takes_the_advert_down(guest: Guest) -> None:
    async def phone() -> None:
        async with BluezAdvertiser("hci0").advertise(SENT):
            await asyncio.Event().wait()

    for number in range(40):
        task = asyncio.create_task(phone())
        for _ in range(number):  # so many turns of the loop later
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    await guest.until(lambda: silent(guest))
    await until_told("hci0", 0)


async def silent(guest: Guest) -> bool:
    return not await guest.advertising("hci0")


async def sends(guest: Guest) -> bool:
    return await guest.advertising("hci0") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
async def test_the_advert_ends_with_the_program_that_sends_it(
    guest: Guest, tunnels: str, loopback_certificate: Certificate, tmp_path: Path, number: signal.Signals
) -> None:
    url = QrTransaction.create(hint=RequestKind.GET_ASSERTION, time=int(time.time())).url.encode()
    words = (
        *("phone", "--url", "-", "--radio", "bluez:hci0", "--tunnel", f"300={tunnels}", "--uv", "accept"),
        *("--ca", loopback_certificate.ca, "--credentials", tmp_path / "passkeys.json"),
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "companion_push", *map(str, words)),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdin is not None
    process.stdin.write(f"{url}\n".encode())
    try:
        await guest.until(lambda: sends(guest))
        process.send_signal(number)
        await guest.until(lambda: silent(guest))
        await until_told("hci0", 0)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


# When it is lost


async def turn_off(guest: Guest) -> None:
    await guest.power("hci0", on=False)


async def turn_on(guest: Guest) -> None:
    await guest.power("hci0", on=True)


async def block(guest: Guest) -> None:
    guest.block("hci0")


async def unblock(guest: Guest) -> None:
    guest.block("hci0", blocked=False)
    await guest.turn_on("hci0")


async def pull_out(guest: Guest) -> None:
    await guest.unplug("hci0")


async def plug_in(guest: Guest) -> None:
    await guest.plug()


async def stop_service(guest: Guest) -> None:
    await guest.stop_service()


async def kill_service(guest: Guest) -> None:
    await guest.stop_service(signal.SIGKILL)


async def start_service(guest: Guest) -> None:
    await guest.start_service()


@pytest.mark.parametrize(
    ("lose", "mend", "reason"),
    [
        pytest.param(turn_off, turn_on, TransportReason.ADAPTER_OFF, marks=pytest.mark.short),
        (block, unblock, TransportReason.ADAPTER_BLOCKED),
        (pull_out, plug_in, TransportReason.NO_ADAPTER),
        (stop_service, start_service, TransportReason.NO_BLUETOOTH_SERVICE),
        (kill_service, start_service, TransportReason.NO_BLUETOOTH_SERVICE),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_a_loss_in_the_middle_ends_what_runs_inside_and_says_the_reason(
    guest: Guest,
    lose: Callable[[Guest], Awaitable[None]],
    mend: Callable[[Guest], Awaitable[None]],
    reason: TransportReason,
) -> None:
    over = asyncio.Event()

    async def phone() -> None:
        async with BluezAdvertiser("hci0").advertise(SENT):
            over.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(phone())
    await over.wait()
    await lose(guest)
    try:
        with pytest.raises(TransportError) as failed:
            async with asyncio.timeout(PATIENCE):
                await task
    finally:
        await mend(guest)
    assert failed.value.reason is reason
    assert await guest.advertising("hci0") == 0
    async with BluezAdvertiser("hci0").advertise(SENT):  # and all is well again
        await until_told("hci0", 1)


async def test_an_adapter_that_is_off_is_named_as_such(guest: Guest) -> None:
    await guest.power("hci0", on=False)
    with pytest.raises(TransportError) as failed:
        async with BluezAdvertiser("hci0").advertise(SENT):
            pass
    await guest.power("hci0", on=True)
    assert failed.value.reason is TransportReason.ADAPTER_OFF


async def test_any_user_may_advertise_unless_the_bus_forbids_it(guest: Guest) -> None:
    async with running_as("nobody", "-c", _PROGRAM) as process:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"advertising\n"
    await guest.until(lambda: silent(guest))
    async with guest.denied(), running_as("nobody", "-c", _PROGRAM) as process:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"bluetooth-forbidden\n"


@dataclass(frozen=True)
class Held:
    """What advertising might leave behind."""

    files: int
    tasks: int
    connections: frozenset[str]
    match_rules: int
    advertising: int
    told: int

    @classmethod
    async def by(cls, guest: Guest) -> "Held":
        return cls(
            files=open_files(),
            tasks=len(asyncio.all_tasks()),
            connections=frozenset(await guest.connections()),
            match_rules=await guest.match_rules(),
            advertising=await guest.advertising("hci0"),
            told=len(await until_told("hci0", 0)),
        )


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("times", [pytest.param(20, marks=pytest.mark.short), 200])
async def test_adverts_leave_nothing_behind(guest: Guest, times: int) -> None:
    before = await Held.by(guest)
    for _ in range(times):
        async with BluezAdvertiser("hci0").advertise(SENT):
            pass
    assert await Held.by(guest) == before


# bumble has the adapter to itself

_BUMBLE = """
import asyncio, sys
from companion_push.companion.advertiser.bumble import BumbleAdvertiser
from headless_passkey.errors import TransportError
from headless_passkey.radio.bumble import BumbleRadio

async def send(transport):
    async with BumbleAdvertiser(transport).advertise(bytes(20)):
        print("advertising", flush=True)
        await asyncio.Event().wait()

async def hear(transport):
    async with BumbleRadio(transport).adverts() as adverts:
        print("listening", flush=True)
        async for advert in adverts:
            print(advert.service_data.hex(), flush=True)

try:
    asyncio.run({"send": send, "hear": hear}[sys.argv[1]](sys.argv[2]))
except TransportError as error:
    print(error.reason)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.fixture
def python_with_sockets(monkeypatch: pytest.MonkeyPatch) -> str:
    """A Python of this version that was built with Bluetooth's sockets, which not all are."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{sysconfig.get_path('purelib')}")
    version = ".".join(map(str, sys.version_info[:2]))
    for python in (sys.executable, "/usr/bin/python3"):
        probe = "import socket, sys; print(*sys.version_info[:2], sep='.'); socket.AF_BLUETOOTH"
        done = subprocess.run([python, "-c", probe], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip() == version:
            return python
    pytest.skip(f"no Python {version} here was built with Bluetooth's sockets")


@dataclass(frozen=True)
class Bumble:
    """That program, running."""

    process: asyncio.subprocess.Process

    async def line(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            return (await self.process.stdout.readline()).decode().strip()


@asynccontextmanager
async def bumble(python: str, *words: str, user: str = "root") -> AsyncIterator[Bumble]:
    let_in()
    process = await asyncio.create_subprocess_exec(
        *(python, "-c", _BUMBLE, *words),
        user=user,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield Bumble(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@asynccontextmanager
async def without_service(guest: Guest) -> AsyncIterator[None]:
    await guest.stop_service()
    try:
        yield
    finally:
        await guest.start_service()


async def test_bumble_sends_over_an_adapter_that_bluetoothd_does_not_have(
    guest: Guest, python_with_sockets: str
) -> None:
    async with (
        without_service(guest),
        BumbleRadio(guest.air).adverts() as adverts,
        bumble(python_with_sockets, "send", "hci-socket:0") as program,
    ):
        assert await program.line() == "advertising"
        await hears(adverts, bytes(20))
        (told,) = await Told.by("hci0")
        assert (told.interval, told.properties) == (100, LEGACY)
        program.process.send_signal(signal.SIGINT)
        assert await program.line() == "interrupted"
        await until_told("hci0", 0)


async def test_bumble_hears_over_an_adapter_that_bluetoothd_does_not_have(
    guest: Guest, python_with_sockets: str
) -> None:
    async with (
        without_service(guest),
        bumble(python_with_sockets, "hear", "hci-socket:0") as program,
        BumbleAdvertiser(guest.air).advertise(SENT),
    ):
        assert await program.line() == "listening"
        assert await program.line() == SENT.hex()


@pytest.mark.parametrize("what", ["send", "hear"])
async def test_bumble_misses_an_adapter_that_is_pulled_out(
    guest: Guest, python_with_sockets: str, what: str
) -> None:
    async with without_service(guest):
        async with bumble(python_with_sockets, what, "hci-socket:0") as program:
            assert await program.line() in ("advertising", "listening")
            await order("unplug hci0")
            assert await program.line() == "no-adapter"
        await order("plug")


async def test_bumble_is_told_why_it_cannot_have_an_adapter(guest: Guest, python_with_sockets: str) -> None:
    async with bumble(python_with_sockets, "send", "hci-socket:0") as program:
        assert await program.line() == "adapter-busy"
    async with bumble(python_with_sockets, "send", "hci-socket:7") as program:
        assert await program.line() == "no-adapter"
    async with bumble(python_with_sockets, "send", "hci-socket:0", user="nobody") as program:
        assert await program.line() == "bluetooth-forbidden"

"""The SDK in one object, where no phone is needed; tests/end_to_end/test_documented.py has the rest."""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from headless_passkey.account import enrolment
from headless_passkey.device import Device
from headless_passkey.errors import (
    NotEnrolled,
    NotSignedIn,
    SetupError,
    SetupReason,
    TransportError,
    TrustError,
    TrustReason,
    UsageError,
)
from headless_passkey.hybrid.fido_url import RequestKind
from headless_passkey.radio.source import Advert
from headless_passkey.rp.users import PinnedUsers
from headless_passkey.rp_ceremony import Asked
from tests.device.inviter import Inviter
from tests.device.test_doctor_servers import silent
from tests.ports import reserved_port
from tests.relay.household import Relay


class NoRadio:
    """A radio that must not be turned on."""

    @asynccontextmanager
    async def adverts(self) -> AsyncIterator[AsyncIterator[Advert]]:
        pytest.fail("the radio was turned on")
        yield


@asynccontextmanager
async def device(state: Path) -> AsyncIterator[Device]:
    async with Device.open(state, radio=NoRadio()) as opened:
        yield opened


async def test_a_device_that_has_not_joined_asks_nobody(tmp_path: Path) -> None:
    async with device(tmp_path / "nothing") as hub:
        with pytest.raises(NotEnrolled):
            await hub.sign_in("https://login.example")
        with pytest.raises(NotSignedIn):
            hub.session()
    assert not (tmp_path / "nothing").exists()


async def test_a_radio_that_there_is_not_is_an_error_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such radio"):
        async with Device.open(tmp_path, radio="wifi"):
            pytest.fail("opened")


def in_a_fresh_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_where_the_extra_is_not_installed_opening_a_device_says_so() -> None:
    code = """
import asyncio, sys
from pathlib import Path
from headless_passkey.device import Device
from headless_passkey.errors import SetupError
sys.modules["aiohttp"] = None
async def main():
    try:
        async with Device.open(Path("state")):
            print("opened")
    except SetupError as error:
        print(error, error.reason, error.advice)
asyncio.run(main())
"""
    assert in_a_fresh_process(code) == (
        "a device needs aiohttp missing-package `pip install '.[device]'` in the clone of headless-passkey\n"
    )


def test_after_load_a_device_opens_without_reading_another_module_of_ours() -> None:
    code = """
import asyncio, sys
from pathlib import Path
from headless_passkey import device
from headless_passkey.errors import NotEnrolled
device.load()
before = set(sys.modules)
async def main():
    async with device.Device.open(Path("/nonexistent/state"), radio=object()) as hub:
        try:
            await hub.sign_in("https://login.example")
        except NotEnrolled:
            print(sorted(each for each in set(sys.modules) - before if "passkey" in each))
asyncio.run(main())
"""
    assert in_a_fresh_process(code) == "[]\n"


async def join(relay: Relay, state: Path, **pins: str) -> None:
    inviter = await Inviter.invite(relay, await relay.household(devices=0))
    async with asyncio.TaskGroup() as tasks:
        joining = enrolment.join(state, inviter.invitation, label="Hub", clock=relay.clock, **pins)  # type: ignore[arg-type]
        tasks.create_task(joining)
        await inviter.admit(await inviter.introduced())


@pytest.mark.threat("T14")
async def test_a_relying_party_that_the_device_may_not_ask_for_is_not_even_called(
    relay: Relay, tmp_path: Path
) -> None:
    await join(relay, tmp_path / "state", rp_id="login.example", origin="https://login.example")
    elsewhere = f"http://localhost:{reserved_port()}"
    asked = Asked(kind=RequestKind.GET_ASSERTION, rp_id="login.example")
    async with device(tmp_path / "state") as hub:
        for attempt in (
            hub.sign_in(elsewhere),
            hub.register(elsewhere, "ada"),
            hub.ask(elsewhere, asked),
            hub.sign_in("https://login.example:8443"),
        ):
            with pytest.raises(TrustError) as refused:
                await attempt
            assert refused.value.reason is TrustReason.RP_NOT_ALLOWED


async def test_a_relying_party_that_does_not_answer_is_waited_for_until_the_deadline(
    relay: Relay, tmp_path: Path
) -> None:
    await join(relay, tmp_path / "state")
    async with silent() as host, device(tmp_path / "state") as hub:
        with pytest.raises(TransportError, match=r"did not answer within 0\.2 seconds"):
            await hub.sign_in(f"http://{host}", timeout=0.2)


@pytest.mark.threat("T3")
async def test_pinned_users_that_cannot_be_kept_or_read_are_told_before_anybody_is_asked(
    relay: Relay, tmp_path: Path
) -> None:
    """Nobody listens at the address, so a device that asks there fails in another way."""
    await join(relay, tmp_path / "state")
    nowhere = f"http://localhost:{reserved_port()}"
    users = PinnedUsers(tmp_path / "state", "localhost")
    await users.pin(b"ada's handle", "ada")
    async with device(tmp_path / "state") as hub:
        with pytest.raises(TrustError) as refused:
            await hub.register(nowhere, "eve")
        assert refused.value.reason is TrustReason.UNEXPECTED_USER
        with pytest.raises(UsageError, match="exclude each other"):
            await hub.sign_in(nowhere, add_user=True, any_user=True)
        users.path.write_text("{")
        for attempt in (
            hub.sign_in(nowhere),
            hub.sign_in(nowhere, user_handle=b"ada's handle"),
            hub.sign_in(nowhere, add_user=True),
            hub.register(nowhere, "ada"),
        ):
            with pytest.raises(SetupError) as damaged:
                await attempt
            assert damaged.value.reason is SetupReason.STATE_DAMAGED
        with pytest.raises(TransportError):
            await hub.sign_in(nowhere, any_user=True, timeout=1)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system of 64 KiB, which a file fills."""
    folder = tmp_path / "full"
    folder.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


async def test_a_sign_in_that_could_not_be_stored_asks_nobody(
    relay: Relay, full_disk: Path, tmp_path: Path
) -> None:
    await join(relay, tmp_path / "state")
    shutil.copytree(tmp_path / "state", full_disk / "state")
    (full_disk / "filler").write_bytes(bytes(40 * 1024))
    before = sorted((full_disk / "state").iterdir())
    async with device(full_disk / "state") as hub:
        for attempt in (
            hub.sign_in(f"http://localhost:{reserved_port()}"),
            hub.register(f"http://localhost:{reserved_port()}", "ada"),
        ):
            with pytest.raises(SetupError) as refused:
                await attempt
            assert refused.value.reason is SetupReason.DISK_FULL
            assert "df -h" in str(refused.value.advice)
    assert sorted((full_disk / "state").iterdir()) == before


@pytest.mark.parametrize(
    "url", ["http://login.example", "https://192.0.2.1", "login.example", "https://a.example?x"]
)
async def test_an_address_that_a_device_cannot_speak_for_is_an_error_of_the_caller(
    tmp_path: Path, url: str
) -> None:
    async with device(tmp_path) as hub:
        with pytest.raises(UsageError):
            await hub.sign_in(url)


@pytest.mark.threat("T13")
@pytest.mark.parametrize("service", ["http://api.example", "https://api.example/path", "api.example"])
async def test_a_service_that_no_token_may_go_to_is_refused_before_anybody_is_asked(
    tmp_path: Path, service: str
) -> None:
    async with device(tmp_path) as hub:
        with pytest.raises(UsageError):
            await hub.sign_in("https://login.example", audience=[service])

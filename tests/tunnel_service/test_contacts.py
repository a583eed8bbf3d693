"""Which contact IDs are known: on the disk, over restarts, within limits."""

import asyncio
import hashlib
import os
import threading
from pathlib import Path

import pytest

from companion_push.tunnel_service.contacts import KEPT, ContactLimits, KnownContacts
from headless_passkey.errors import SetupError, UsageError

ONE, TWO, THREE = (bytes([number]) * 32 for number in (1, 2, 3))
NOW = 1_800_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def contacts(folder: Path, clock: Clock | None = None, **limits: float) -> KnownContacts:
    return KnownContacts(folder / "contacts", ContactLimits(**limits), clock or Clock())  # type: ignore[arg-type]


def not_to_be_written(folder: Path, contact_id: bytes) -> Path:
    """Have the disk refuse the file of a contact ID, which is not there: a link that leads nowhere."""
    file = folder / "contacts" / hashlib.sha256(contact_id).hexdigest()
    file.symlink_to("nowhere")
    return file


async def add(known: KnownContacts, *contact_ids: bytes, address: str = "192.0.2.1", now: float = 0) -> bool:
    return await known.add(contact_ids, address=address, now=now)


async def test_what_was_added_is_known_after_a_restart_until_it_is_forgotten(tmp_path: Path) -> None:
    known = contacts(tmp_path)
    assert not known.knows(ONE)
    assert await add(known, ONE, TWO)
    again = contacts(tmp_path)
    assert [again.knows(each) for each in (ONE, TWO, THREE)] == [True, True, False]
    assert len(again) == 2
    await again.forget([ONE, THREE])
    assert not again.knows(ONE)
    assert not known.knows(ONE)
    assert len(again) == len(contacts(tmp_path)) == 1


@pytest.mark.threat("T11")
async def test_the_folder_is_private_and_holds_no_contact_id(tmp_path: Path) -> None:
    known = contacts(tmp_path)
    await add(known, ONE)
    (file,) = (tmp_path / "contacts").iterdir()
    assert file.name == hashlib.sha256(ONE).hexdigest()
    assert file.read_bytes() == b""
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "contacts").mkdir(mode=0o755)
    with pytest.raises(SetupError):
        contacts(tmp_path)


async def test_one_that_is_not_registered_for_half_a_year_is_known_no_more(tmp_path: Path) -> None:
    clock = Clock()
    known = contacts(tmp_path, clock)
    await add(known, ONE, TWO)
    clock.now += KEPT - 1
    assert known.knows(ONE)
    await add(known, ONE)  # registered anew
    clock.now += 1
    assert [known.knows(ONE), known.knows(TWO)] == [True, False]
    assert len(contacts(tmp_path, clock)) == 1
    assert len(list((tmp_path / "contacts").iterdir())) == 1


async def test_a_clock_that_is_behind_for_a_while_makes_nothing_old(tmp_path: Path) -> None:
    """As of a machine without a clock of its own, which starts years ago until it has asked a time server."""
    clock = Clock()
    await add(contacts(tmp_path, clock), ONE)
    clock.now -= NOW
    known = contacts(tmp_path, clock)
    assert await add(known, ONE, TWO)  # phones that register again, or for the first time
    clock.now += NOW
    assert [known.knows(ONE), known.knows(TWO)] == [True, True]
    assert len(contacts(tmp_path, clock)) == 2  # which notes that it does not know how old one is
    clock.now += KEPT - 1
    assert [known.knows(ONE), known.knows(TWO)] == [True, True]
    clock.now += 1
    assert len(contacts(tmp_path, clock)) == 0


async def test_a_phone_that_stays_connected_is_known_for_half_a_year_after_it_has_left(
    tmp_path: Path,
) -> None:
    clock = Clock()
    known = contacts(tmp_path, clock)
    await add(known, ONE, TWO)
    clock.now += KEPT - 1
    await known.note([ONE, THREE])
    clock.now += KEPT - 1
    assert [known.knows(each) for each in (ONE, TWO, THREE)] == [True, False, False]
    assert len(list((tmp_path / "contacts").iterdir())) == 2  # to be noted registers nothing
    await known.forget([ONE])
    await known.note([ONE])
    assert not known.knows(ONE, registered=True)


async def test_a_file_that_is_no_contact_id_is_neither_counted_nor_removed(tmp_path: Path) -> None:
    """The folder may be the service's own, with its key in it."""
    folder, clock = tmp_path / "contacts", Clock()
    await add(contacts(tmp_path, clock), ONE)
    for name in ("key.pem", f"{hashlib.sha256(TWO).hexdigest()}.old"):
        (folder / name).touch()
        os.utime(folder / name, (NOW, NOW))
    clock.now += KEPT
    assert len(contacts(tmp_path, clock)) == 0
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["key.pem", f"{hashlib.sha256(TWO).hexdigest()}.old"]
    )


async def test_a_full_folder_takes_known_ones_only_until_old_ones_have_gone(tmp_path: Path) -> None:
    clock = Clock()
    known = contacts(tmp_path, clock, contacts=2)
    assert await add(known, ONE, TWO)
    assert not await add(known, THREE)
    assert await add(known, ONE)
    clock.now += KEPT
    assert await add(known, THREE)
    assert len(known) == 1


@pytest.mark.threat("T13")
async def test_an_address_makes_so_many_known_an_hour_and_others_go_on(tmp_path: Path) -> None:
    known = contacts(tmp_path, new_per_address=2)
    assert await add(known, ONE, TWO, address="2001:db8::1")
    assert not await add(known, THREE, address="2001:db8::2")  # of the same /64
    assert await add(known, ONE, address="2001:db8::2")  # which is no new one
    assert await add(known, THREE, address="2001:db9::1")
    assert await add(known, bytes(32), address="2001:db8::1", now=1800)


@pytest.mark.parametrize("left", ["nothing", "a file"])
async def test_a_folder_that_is_gone_is_an_error_that_names_no_contact(tmp_path: Path, left: str) -> None:
    known = contacts(tmp_path)
    (tmp_path / "contacts").rmdir()
    if left == "a file":
        (tmp_path / "contacts").touch()
    with pytest.raises(SetupError):  # and not an answer: devices delete their links at a no
        known.knows(ONE)
    for work in (add(known, ONE), known.forget([ONE]), known.note([ONE])):
        with pytest.raises(SetupError) as refused:
            await work
        assert hashlib.sha256(ONE).hexdigest() not in str(refused.value)


async def test_what_the_disk_did_not_take_is_not_counted(tmp_path: Path) -> None:
    known = contacts(tmp_path, contacts=2)
    file = not_to_be_written(tmp_path, ONE)
    for _ in range(3):
        with pytest.raises(SetupError):
            await add(known, ONE, TWO)
    file.unlink()
    assert len(known) == 0
    assert await add(known, ONE, TWO)
    assert len(known) == 2


async def test_one_that_two_phones_register_at_once_counts_once(tmp_path: Path) -> None:
    both = threading.Barrier(2)
    clock = Clock()

    def time_of_both() -> float:
        if threading.current_thread() is not threading.main_thread():
            both.wait(30)  # nothing is written before both have looked
        return clock()

    known = KnownContacts(tmp_path / "contacts", ContactLimits(contacts=2), time_of_both)
    assert all(await asyncio.gather(add(known, ONE), add(known, ONE)))
    assert len(known) == 1


async def test_what_the_disk_did_not_take_of_a_phone_that_has_left_is_not_counted_either(
    tmp_path: Path,
) -> None:
    known = contacts(tmp_path)
    not_to_be_written(tmp_path, ONE)
    adding = asyncio.create_task(add(known, ONE))
    await asyncio.sleep(0)
    adding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await adding
    assert len(known) == 0


async def test_what_a_phone_that_has_left_forgot_counts_no_more(tmp_path: Path) -> None:
    known = contacts(tmp_path)
    await add(known, ONE, TWO)
    forgetting = asyncio.create_task(known.forget([ONE]))
    await asyncio.sleep(0)
    forgetting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await forgetting
    assert not known.knows(ONE)
    assert len(known) == 1


@pytest.mark.parametrize("name", ["phones", "contacts", "waiting_per_contact", "requests_per_contact"])
def test_a_limit_of_nothing_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        ContactLimits(**{name: 0})

"""Keys for relying parties: one for each origin, made once, private, and linked with no other."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headless_passkey.errors import HeadlessPasskeyError, SetupError, SetupReason, UsageError
from headless_passkey.process.private_file import lock
from headless_passkey.rp.key_store import KeyStore, is_key_file
from program_parts.base64url import base64url

ORIGIN = "https://login.example"


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "state")


@pytest.mark.threat("T13")
async def test_each_origin_has_a_key_of_its_own_which_stays(store: KeyStore) -> None:
    origins = [
        ORIGIN,
        "https://login.example:8443",
        "https://other.example",
        "http://localhost:1",
        "https://[::1]",
    ]
    made = {origin: (await store.key(origin)).public_key for origin in origins}
    assert len(set(made.values())) == len(origins)
    again = KeyStore(store.state)
    assert {origin: (await again.key(origin)).public_key for origin in origins} == made
    assert {origin: key.public_key for origin, key in again.all().items()} == made
    assert store.path(ORIGIN).stat().st_mode & 0o777 == 0o600
    assert store.path(ORIGIN).parent.stat().st_mode & 0o777 == 0o700


async def test_a_name_as_long_as_names_get_has_a_file(store: KeyStore) -> None:
    await store.key("https://" + ".".join(["a" * 62] * 4))
    assert len(store.all()) == 1


def test_what_is_no_origin_has_no_key(store: KeyStore) -> None:
    with pytest.raises(UsageError):
        asyncio.run(store.key("login.example"))


async def test_tasks_that_want_the_first_key_at_once_get_the_same(store: KeyStore) -> None:
    keys = await asyncio.gather(*(KeyStore(store.state).key(ORIGIN) for _ in range(8)))
    assert len({key.public_key for key in keys}) == 1


FIRST = """
import asyncio, sys
from pathlib import Path
from headless_passkey.rp.key_store import KeyStore
print(asyncio.run(KeyStore(Path(sys.argv[1])).key(sys.argv[2])).public_key.hex())
"""


async def test_processes_that_want_the_first_key_at_once_get_the_same(store: KeyStore) -> None:
    words = [sys.executable, "-c", FIRST, str(store.state), ORIGIN]
    processes = await asyncio.gather(
        *(asyncio.create_subprocess_exec(*words, stdout=subprocess.PIPE) for _ in range(3))
    )
    said = [out for out, _ in await asyncio.gather(*(process.communicate() for process in processes))]
    assert said[0].strip()
    assert len(set(said)) == 1


async def test_a_key_that_is_there_is_read_while_somebody_holds_the_lock(store: KeyStore) -> None:
    made = await store.key(ORIGIN)
    with lock(store.path(ORIGIN)):
        assert (await store.key(ORIGIN)).public_key == made.public_key
    store.path(ORIGIN).unlink()
    with lock(store.path(ORIGIN)):
        waiting = asyncio.create_task(store.key(ORIGIN))
        await asyncio.sleep(0)
        assert not waiting.done()
    assert (await waiting).public_key != made.public_key


async def test_all_keys_are_removed_also_those_that_cannot_be_read(store: KeyStore) -> None:
    store.remove_all()
    first = await store.key(ORIGIN)
    await store.key("https://other.example")
    store.path("https://other.example").write_text("{")
    told: list[HeadlessPasskeyError] = []
    assert list(store.all(told.append)) == [ORIGIN]
    assert [error.reason for error in told] == [SetupReason.STATE_DAMAGED]
    store.remove_all()
    assert store.all() == {}
    assert not store.path("https://other.example").exists()
    assert (await store.key(ORIGIN)).public_key != first.public_key


@pytest.mark.threat("T11")
async def test_no_key_is_shown(store: KeyStore) -> None:
    key = await store.key(ORIGIN)
    for secret in (key.to_bytes().hex(), base64url(key.to_bytes())):
        assert secret not in repr(key) + repr(store.all())


# What is not in order


@pytest.fixture
def file(store: KeyStore) -> Path:
    asyncio.run(store.key(ORIGIN))
    return store.path(ORIGIN)


def _a_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def _with(path: Path, **members: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **members}))


DAMAGES: dict[str, tuple[Callable[[Path], object], SetupReason]] = {
    "0666": (lambda path: path.chmod(0o666), SetupReason.STATE_EXPOSED),
    "a symlink": (_a_link, SetupReason.STATE_UNREADABLE),
    "empty": (lambda path: path.write_bytes(b""), SetupReason.STATE_DAMAGED),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-9]), SetupReason.STATE_DAMAGED),
    "too long": (lambda path: path.write_bytes(b" " * 4097), SetupReason.STATE_DAMAGED),
    "no scalar": (lambda path: _with(path, key=base64url(bytes(32))), SetupReason.STATE_DAMAGED),
    "another origin": (lambda path: _with(path, origin="https://other.example"), SetupReason.STATE_DAMAGED),
    "another format": (lambda path: _with(path, format=2), SetupReason.STATE_INCOMPATIBLE),
}


@pytest.mark.threat("T11")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_not_in_order_is_refused_and_not_replaced(
    store: KeyStore, file: Path, damage: str
) -> None:
    do, reason = DAMAGES[damage]
    do(file)
    before = file.read_bytes()
    with pytest.raises(SetupError) as refused:
        asyncio.run(store.key(ORIGIN))
    assert refused.value.reason is reason
    assert refused.value.advice
    assert file.read_bytes() == before
    assert store.all() == {}


@pytest.mark.threat("T12")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(
    name=st.sampled_from(["format", "origin", "key"]),
    value=st.none() | st.booleans() | st.integers() | st.text(max_size=9),
)
def test_any_member_is_read_or_refused(store: KeyStore, file: Path, name: str, value: Any) -> None:
    content = file.read_text()
    file.write_text(json.dumps({**json.loads(content), name: value}))
    reason: str | None = None
    try:
        asyncio.run(store.key(ORIGIN))
    except SetupError as error:
        reason = error.reason
    finally:
        file.write_text(content)
    assert reason in (None, SetupReason.STATE_DAMAGED, SetupReason.STATE_INCOMPATIBLE)


def test_a_directory_that_others_may_enter_gets_no_key(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(SetupError) as refused:
        asyncio.run(KeyStore(tmp_path).key(ORIGIN))
    assert refused.value.reason is SetupReason.STATE_EXPOSED


def test_what_holds_a_key_is_told_by_its_name(file: Path) -> None:
    assert is_key_file(file)
    assert is_key_file(file.with_name(f".{file.name}.lock"))
    assert not is_key_file(file.with_name("enrolment.json"))

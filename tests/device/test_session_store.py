"""Sessions on disk: private, whole, one for each relying party, and one holder at a time."""

import asyncio
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headless_passkey.errors import HeadlessPasskeyError, SetupError, SetupReason, TransportError
from headless_passkey.rp.conduit import OpenedSession
from headless_passkey.rp.session_store import KeptSession, SessionStore, is_session_file

RP = "https://login.example/passkeys"
OPENED = OpenedSession(
    token="t0ken",
    expires_at=1_800_000_600,
    refresh_token="refre5h",
    ends_at=1_802_592_000,
    user_name="ada",
    display_name="Ada",
    user_handle="AAAA",
    credential_id="BBBB",
    audience=("https://api.example",),
)
KEPT = KeptSession(
    relying_party=RP,
    opened=OPENED,
    key_name="n" * 43,
    told=("https://told.example",),
    received_at=1_800_000_000,
)


@pytest.fixture
def store(tmp_path: Path) -> SessionStore:
    return SessionStore(tmp_path / "state")


def test_a_session_comes_back_as_it_was_kept(store: SessionStore) -> None:
    assert store.read(RP) is None
    path = store.write(KEPT)
    assert store.read(RP) == KEPT
    assert path.parent == store.state
    assert path.name.startswith("session-login.example-")
    assert path.stat().st_mode & 0o777 == 0o600
    assert store.state.stat().st_mode & 0o777 == 0o700


def test_each_relying_party_has_a_session_of_its_own(store: SessionStore) -> None:
    others = [
        "https://login.example",
        "https://login.example:8443/passkeys",
        "https://[::1]",
        "http://localhost:1",
    ]
    for number, rp in enumerate([RP, *others]):
        store.write(replace(KEPT, relying_party=rp, opened=replace(OPENED, user_name=f"user {number}")))
    assert [one.relying_party for one in store.all()] == sorted([RP, *others])
    kept = [store.read(rp) for rp in (RP, *others)]
    assert [one and one.opened.user_name for one in kept] == [f"user {number}" for number in range(5)]
    store.remove(RP)
    store.remove(RP)
    assert store.read(RP) is None
    assert len(store.all()) == 4


def test_a_name_as_long_as_names_get_has_a_file(store: SessionStore) -> None:
    rp = "https://" + ".".join(["a" * 62] * 4)
    store.write(replace(KEPT, relying_party=rp))
    assert store.read(rp) is not None


def test_the_token_may_go_to_the_relying_party_its_services_and_those_the_owner_named() -> None:
    assert KEPT.audience == ("https://login.example", "https://api.example", "https://told.example")


@pytest.mark.threat("T11")
def test_no_token_is_shown() -> None:
    shown = repr(KEPT) + json.dumps(KEPT.public())
    for secret in ("t0ken", "refre5h"):
        assert secret not in shown
    assert KEPT.public()["token"] is None


# What is not in order


@pytest.mark.threat("T11")
def test_a_session_that_others_may_read_is_refused(store: SessionStore) -> None:
    store.write(KEPT).chmod(0o640)
    with pytest.raises(SetupError) as refused:
        store.read(RP)
    assert refused.value.reason is SetupReason.STATE_EXPOSED


def test_one_that_is_damaged_spoils_no_other(store: SessionStore) -> None:
    store.write(replace(KEPT, relying_party="https://other.example"))
    store.write(KEPT).write_bytes(b"{")
    told: list[HeadlessPasskeyError] = []
    assert [one.relying_party for one in store.all(told.append)] == ["https://other.example"]
    (error,) = told
    assert error.reason is SetupReason.STATE_DAMAGED
    assert error.explain().endswith(f"is damaged: `rm {store.path(RP)}`, then sign in again")


@pytest.mark.parametrize("version", [1, 3])
def test_one_of_another_version_is_told_as_such_and_replaced_by_a_sign_in(
    store: SessionStore, version: int
) -> None:
    """In version 1 a session was bound to the key of the ring, or held its key."""
    path = store.write(KEPT)
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": version}))
    with pytest.raises(SetupError) as refused:
        store.read(RP)
    assert refused.value.reason is SetupReason.STATE_INCOMPATIBLE
    assert refused.value.advice == "sign in again, which replaces it"
    store.write(KEPT)
    assert store.read(RP) == KEPT


def test_a_file_of_another_name_is_no_session(store: SessionStore) -> None:
    """Somebody has copied it: two files with the same refresh token would end the session."""
    path = store.write(KEPT)
    path.with_name("session-copy.json").write_bytes(path.read_bytes())
    path.with_name("session-copy.json").chmod(0o600)
    assert len(store.all()) == 1


@pytest.mark.threat("T12")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(
    name=st.sampled_from(["relying_party", "key_name", "told", "received_at", "session", "format"]),
    value=st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=9)
    | st.lists(st.text(max_size=3), max_size=2),
)
def test_any_member_is_read_or_refused(store: SessionStore, name: str, value: Any) -> None:
    path = store.write(KEPT)
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    reason: str | None = None
    try:
        assert store.read(RP) is not None
    except SetupError as error:
        reason = error.reason
    assert reason in (None, SetupReason.STATE_DAMAGED, SetupReason.STATE_INCOMPATIBLE)


@pytest.mark.parametrize(
    "origin",
    ["http://api.example", "https://api.example/path", "https://user@api.example", "api.example", 5, None],
)
def test_a_service_that_a_token_must_not_go_to_is_passed_over_in_what_the_relying_party_says(
    store: SessionStore, origin: Any
) -> None:
    path = store.write(KEPT)
    content = json.loads(path.read_text())
    content["session"]["audience"] = [origin, "https://fine.example"]
    path.write_text(json.dumps(content))
    kept = store.read(RP)
    assert kept is not None
    assert kept.opened.audience == ("https://fine.example",)


@pytest.mark.parametrize("token", ["", "a b", "a\r\nHost: evil", "tökén", "a,b", "=a"])
def test_a_token_that_cannot_stand_in_a_header_is_refused(store: SessionStore, token: str) -> None:
    path = store.write(KEPT)
    content = json.loads(path.read_text())
    content["session"]["token"] = token
    path.write_text(json.dumps(content))
    with pytest.raises(SetupError):
        store.read(RP)


def test_what_is_a_session_file_is_told_by_its_name(store: SessionStore) -> None:
    path = store.write(KEPT)
    assert is_session_file(path)
    assert is_session_file(path.with_name(f".{path.name}.lock"))
    assert not is_session_file(path.with_name("enrolment.json"))


def test_all_are_removed_also_those_that_cannot_be_read(store: SessionStore) -> None:
    store.write(KEPT)
    damaged = store.write(replace(KEPT, relying_party="https://other.example"))
    damaged.write_text("{")
    assert store.remove_all() == [RP]
    assert not damaged.exists()
    assert store.all() == []
    assert store.remove_all() == []


# One holder at a time


async def test_two_tasks_hold_a_session_one_after_the_other(store: SessionStore) -> None:
    held: list[str] = []
    first_has_it, let_go = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        async with store.locked(RP):
            held.append("first in")
            first_has_it.set()
            await let_go.wait()
            held.append("first out")

    async def second() -> None:
        await first_has_it.wait()
        async with store.locked(RP):
            held.append("second in")

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(first())
        tasks.create_task(second())
        await first_has_it.wait()
        async with store.locked("https://other.example"):  # another one is not held up
            let_go.set()
    assert held == ["first in", "first out", "second in"]


async def test_a_wait_for_a_holder_ends_in_time_and_can_be_cancelled(store: SessionStore) -> None:
    async with store.locked(RP):
        with pytest.raises(TransportError, match="in use by another process"):
            async with store.locked(RP, seconds=0.05):
                pytest.fail("held twice")
        waiting = asyncio.create_task(_hold(store))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    await _hold(store)


async def _hold(store: SessionStore) -> None:
    async with store.locked(RP):
        pass


HOLDER = """
import asyncio, sys
from pathlib import Path
from headless_passkey.rp.session_store import SessionStore

async def hold():
    async with SessionStore(Path(sys.argv[1])).locked(sys.argv[2]):
        print("held", flush=True)
        await asyncio.Event().wait()

asyncio.run(hold())
"""


async def test_a_process_that_is_killed_gives_its_lock_back(store: SessionStore) -> None:
    store.prepare()
    words = [sys.executable, "-c", HOLDER, str(store.state), RP]
    process = await asyncio.create_subprocess_exec(*words, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"held\n"
    with pytest.raises(TransportError):
        async with store.locked(RP, seconds=0.05):
            pytest.fail("held twice")
    process.kill()
    await process.wait()
    await _hold(store)
